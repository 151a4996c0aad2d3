"""A judge that writes down what it hears: a small recurrent network with CTC, trained on real recordings alone.

    judge = train_transcriber(train_features, texts, seed=0)    # Sequence of natural-log mels [B, T, C], a text an item
    heard = judge.texts(generated)                              # list[str]

For languages in which no recogniser made by others is at hand. It hears parts in orders that it was never taught, so
that phrases which no recording in its training says can be judged; what it makes of real recordings of such phrases
stands beside every figure of it. Features are the *unstandardised* natural logarithms of mel power.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mmseqvae.data import BucketBatchSampler
from mmseqvae.evaluation.judges.log_mel_classifier import augment
from mmseqvae.files import replacing, write_json
from mmseqvae.rnn.layer import Recurrent
from mmseqvae.sequence import Sequence

FORMAT_VERSION = 1
STRIDE = 2  # frames a step


class Transcriber(nn.Module):
    """Log-mels to characters: a convolution that halves the time, recurrent layers both ways, CTC (Graves et al. 2006).

    characters: what can be written, in the order of the logits behind the blank. channels: mels a frame.
    """

    mean: Tensor  # [C]
    scale: Tensor  # [C]

    def __init__(self, characters: str, channels: int, width: int = 96, hidden: int = 96) -> None:
        super().__init__()
        self.config = {"characters": characters, "channels": channels, "width": width, "hidden": hidden}
        self.characters = characters
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.convolution = nn.Conv1d(channels, width, 5, STRIDE, padding=2)
        self.rnn = Recurrent(width, hidden, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(self.rnn.channels, 1 + len(characters))

    def forward(self, features: Sequence) -> tuple[Tensor, Tensor]:
        """Log-mels of B -> log-probabilities [B, N, 1 + characters] and the number of steps of each item, [B]."""
        standardised = (features.filled() - self.mean) / self.scale * features.mask[..., None]
        x = F.relu(self.convolution(standardised.transpose(1, 2))).transpose(1, 2)
        steps = (features.lengths + STRIDE - 1) // STRIDE
        return self.output(self.dropout(self.rnn(x, steps))).log_softmax(-1), steps

    @torch.no_grad()
    def texts(self, features: Sequence, batch: int = 128) -> list[str]:
        """The characters of the most probable steps, repetitions and blanks taken out; "" for an empty item."""
        self.eval()
        heard = []
        for start in range(0, len(features), batch):
            part = features[start : start + batch]
            if not part.steps:
                heard += [""] * len(part)
                continue
            logits, steps = self(Sequence(part.values.float(), part.lengths, part.observed))
            for row, length in zip(logits.argmax(-1), steps.tolist(), strict=True):
                kept = row[:length].unique_consecutive()
                heard.append("".join(self.characters[index - 1] for index in kept.tolist() if index))
        return heard

    def save(self, folder: str | Path) -> None:
        """Write `transcriber.safetensors` and, last, `transcriber.json` into `folder`."""
        with replacing(Path(folder) / "transcriber.safetensors") as part:
            save_file(self.state_dict(), part)
        write_json(Path(folder) / "transcriber.json", {"format_version": FORMAT_VERSION, **self.config})

    @classmethod
    def load(cls, folder: str | Path) -> Transcriber:
        """The transcriber that `save` wrote. Raises FileNotFoundError or ValueError (another format version)."""
        config = json.loads((Path(folder) / "transcriber.json").read_text(encoding="utf-8"))
        if (version := config.pop("format_version")) != FORMAT_VERSION:
            raise ValueError(
                f"{folder}/transcriber.json has format version {version}, this code reads {FORMAT_VERSION}"
            )
        judge = cls(**config)
        judge.load_state_dict(load_file(Path(folder) / "transcriber.safetensors"))
        return judge.eval()


def train_transcriber(
    features: Sequence,
    texts: list[str],
    seed: int = 0,
    epochs: int = 12,
    batch: int = 32,
    learning_rate: float = 5e-3,
    progress: str | None = None,
) -> Transcriber:
    """Train a transcriber on real recordings: log-mels [B, T, C] and one text an item.

    The same arguments give the same weights; the global random state is left as it was. `progress` names a bar.
    Raises ValueError where texts and items do not match, or an item or a text is empty.
    """
    if len(texts) != len(features):
        raise ValueError(f"{len(features)} items need as many texts, got {len(texts)}")
    empty = ~features.check().present | torch.tensor([not text for text in texts])
    if empty.any():
        raise ValueError(f"item {int(empty.nonzero()[0])} has no sound or no text: there is nothing to learn from it")
    characters = "".join(sorted(set("".join(texts))))
    targets = [torch.tensor([1 + characters.index(c) for c in text]) for text in texts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        judge = Transcriber(characters, features.values.shape[2])
        frames = features.values[features.mask].float()
        judge.mean.copy_(frames.mean(0))
        judge.scale.copy_(frames.std(0).clamp_min(1e-3))
        optimiser = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.01)
        steps = epochs * -(-len(texts) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.2)
        batches = BucketBatchSampler(features.lengths.numpy(), batch, seed=seed)  # another order every epoch
        judge.train()
        for _ in tqdm(range(epochs), progress, unit="epoch", disable=progress is None):
            for rows in batches:
                longest = int(features.lengths[rows].max())
                heard = augment(Sequence(features.values[rows, :longest].float(), features.lengths[rows]), generator)
                logits, lengths = judge(heard)
                wanted = [targets[row] for row in rows]
                loss = F.ctc_loss(
                    logits.transpose(0, 1), torch.cat(wanted), lengths, torch.tensor([len(t) for t in wanted]),
                    zero_infinity=True,
                )  # fmt: skip
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
                optimiser.step()
                schedule.step()
    return judge.eval()


def transcriber(
    features: Sequence, texts: list[str], cache_dir: Path, epochs: int = 12, progress: str | None = None
) -> Transcriber:
    """The judge that learnt from exactly these recordings by exactly this code, from the cache where it is there."""
    content = hashlib.sha256(Path(__file__).read_bytes() + str(epochs).encode())
    for item, text in zip(features.items(), texts, strict=True):
        content.update(item.numpy().tobytes() + text.encode())
    folder = cache_dir / "judges" / f"transcriber-{content.hexdigest()[:16]}"
    if (folder / "transcriber.json").exists():  # written last
        return Transcriber.load(folder)
    judge = train_transcriber(features, texts, epochs=epochs, progress=progress)
    judge.save(folder)
    return judge

"""Independent judges of log-mels: small classifiers trained on real recordings, which no generator ever sees.

    judge = train_judge(train_features, digits, seed=0)      # Sequence of natural-log mels [B, T, C], one label an item
    heard = judge.labels(generated)                          # list[str]
    judge.save("cache/digits"); judge = Judge.load("cache/digits")

Features are the *unstandardised* natural logarithms of mel power; a judge keeps its own mean and scale, so that it can
listen to any model whose output is brought back to that unit. Training varies gain, noise, pauses, speed and gaps.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mmseqvae.files import replacing, write_json
from mmseqvae.sequence import Sequence

FORMAT_VERSION = 1


class Block(nn.Module):
    """Strided two-dimensional convolution, norm and ReLU that never let padding through: (x, mask) -> (x, mask)."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask[:, :: self.stride[0]]  # an output step lives where the input step at its centre does
        return F.relu(self.norm(self.convolution(x))) * mask[:, None, :, None], mask


class Judge(nn.Module):
    """Classifier of log-mels into named classes. Padding changes nothing; a batch of one equals the item in a batch.

    classes: names in the order of the logits. channels: mels a frame. width: channels of the first convolution.
    """

    mean: Tensor  # [C]
    scale: Tensor  # [C]

    def __init__(self, classes: list[str], channels: int, width: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.config = {"classes": list(classes), "channels": channels, "width": width, "hidden": hidden}
        self.classes = list(classes)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.blocks = nn.ModuleList(
            [Block(1, width, (1, 2)), Block(width, 2 * width, (2, 2)), Block(2 * width, 4 * width, (2, 2))]
        )
        bands = channels
        for _ in self.blocks:
            bands = -(-bands // 2)
        self.hidden = nn.Linear(2 * 4 * width * bands, hidden)
        self.output = nn.Linear(hidden, len(classes))
        self.dropout = nn.Dropout(0.3)

    def forward(self, features: Sequence) -> tuple[Tensor, Tensor]:
        """(logits [B, classes], penultimate [B, hidden]) of log-mels [B, T, C]; an empty item gets constant logits."""
        if features.values.ndim != 3 or features.values.shape[2] != len(self.mean):
            raise ValueError(f"the judge hears [B, T, {len(self.mean)}] log-mels, got {tuple(features.values.shape)}")
        if features.steps == 0:  # a convolution needs a step, even where every item is empty
            features = Sequence(features.values.new_zeros(len(features), 1, len(self.mean)), features.lengths)
        mask = features.mask.float()
        standardised = (features.filled() - self.mean) / self.scale
        x = (standardised * mask[..., None])[:, None]  # [B, 1, T, C]
        for block in self.blocks:
            x, mask = block(x, mask)
        x = x.permute(0, 2, 1, 3).flatten(2)  # [B, T / 4, O C]; after ReLU the 0 of padding never wins the maximum
        average = x.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        penultimate = F.relu(self.hidden(self.dropout(torch.cat([average, x.amax(1)], -1))))
        return self.output(self.dropout(penultimate)), penultimate

    @torch.no_grad()
    def _listen(self, features: Sequence, batch: int = 256) -> tuple[Tensor, Tensor]:
        self.eval()
        heard = []
        for start in range(0, max(len(features), 1), batch):
            part = features[start : start + batch]
            heard.append(self(Sequence(part.values.float(), part.lengths, part.observed).to(self.mean.device)))
        logits, penultimate = zip(*heard, strict=True)
        return torch.cat(logits), torch.cat(penultimate)

    def logits(self, features: Sequence) -> Tensor:
        """Unnormalised log-probabilities [B, classes]."""
        return self._listen(features)[0]

    def labels(self, features: Sequence) -> list[str]:
        """The most probable class of each item."""
        return [self.classes[index] for index in self.logits(features).argmax(-1).tolist()]

    def penultimate(self, features: Sequence) -> Tensor:
        """Activations [B, hidden] below the output layer: the space in which copies of recordings are looked for."""
        return self._listen(features)[1]

    def save(self, folder: str | Path) -> None:
        """Write `judge.safetensors` and `judge.json` into `folder`."""
        with replacing(Path(folder) / "judge.safetensors") as part:
            save_file(self.state_dict(), part)
        write_json(Path(folder) / "judge.json", {"format_version": FORMAT_VERSION, **self.config})

    @classmethod
    def load(cls, folder: str | Path) -> Judge:
        """The judge that `save` wrote. Raises FileNotFoundError or ValueError (another format version)."""
        config = json.loads((Path(folder) / "judge.json").read_text())
        if (version := config.pop("format_version")) != FORMAT_VERSION:
            raise ValueError(f"{folder}/judge.json has format version {version}, this code reads {FORMAT_VERSION}")
        judge = cls(**config)
        judge.load_state_dict(load_file(Path(folder) / "judge.safetensors"))
        return judge.eval()


def augment(features: Sequence, generator: torch.Generator) -> Sequence:
    """The same recordings as another microphone, pause, pace and room might have given them.

    Speed 0.88 to 1.12, 0 to 5 frames of silence or 0 to 2 lost frames at each end, gain within 2 nats of power (9 dB),
    stationary noise 10 to 45 dB below the loudest band, jitter of single values, one gap in time and one in frequency.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    x, lengths = features.values, features.lengths
    batch, _, channels = x.shape
    floor = features.filled(torch.inf).amin((1, 2))[:, None, None]  # [B, 1, 1]
    peak = features.filled(-torch.inf).amax((1, 2))[:, None, None]

    speed, lead, trail = uniform(0.88, 1.12, batch), uniform(-2, 5, batch).round(), uniform(-2, 5, batch).round()
    stretched = (lengths / speed + lead + trail).round().long().clamp_min(4)
    at = ((torch.arange(int(stretched.max())) - lead[:, None]) * speed[:, None]).round().long()  # [B, T]
    inside = (at >= 0) & F.pad(features.valid, (0, 1)).gather(1, at.clamp(0, features.steps))
    index = at.clamp(0, x.shape[1] - 1)[..., None].expand(-1, -1, channels)
    x = torch.where(inside[..., None], x.gather(1, index), floor)

    colour = uniform(-1.5, 0, batch, 1, channels)
    level = peak - uniform(10, 45, batch, 1, 1) * 0.2303  # dB -> nats of power
    noise = level + colour + 0.5 * torch.randn(x.shape, generator=generator)
    x = torch.where(uniform(0, 1, batch, 1, 1) < 0.5, torch.logaddexp(x, noise), x) + uniform(-2, 2, batch, 1, 1)
    x = x + uniform(0, 0.6, batch, 1, 1) * torch.randn(x.shape, generator=generator)

    def gap(size: int, widest: int) -> Tensor:
        start, width = uniform(0, size, batch, 1), uniform(0, widest, batch, 1)
        place = torch.arange(size)
        return (place >= start) & (place < start + width)

    masked = gap(x.shape[1], 5)[:, :, None] | gap(channels, 6)[:, None, :]
    level = features.sum_steps(features.values.mean(-1)) / lengths.clamp_min(1)
    return Sequence(torch.where(masked, level[:, None, None], x), stretched)


def train_judge(
    features: Sequence,
    labels: list[str],
    seed: int = 0,
    epochs: int = 20,
    batch: int = 48,
    learning_rate: float = 4e-3,
    progress: str | None = None,
) -> Judge:
    """Train a judge on real recordings: log-mels [B, T, C] and one label an item; 30 s on one core for 2,700 words.

    The same arguments give the same weights; the global random state is left as it was. `progress` names a bar.
    Raises ValueError where labels and items do not match, an item is empty, or there are fewer than two classes.
    """
    if len(labels) != len(features):
        raise ValueError(f"{len(features)} items need as many labels, got {len(labels)}")
    if not features.check().present.all():
        raise ValueError(f"item {int((~features.present).nonzero()[0])} is empty: a judge learns from recordings only")
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"a judge needs at least two classes, got {classes}")
    target = torch.tensor([classes.index(label) for label in labels])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        judge = Judge(classes, features.values.shape[2])
        frames = features.values[features.mask].float()
        judge.mean.copy_(frames.mean(0))
        judge.scale.copy_(frames.std(0).clamp_min(1e-3))
        optimiser = torch.optim.AdamW(judge.parameters(), lr=learning_rate, weight_decay=0.02)
        steps = epochs * -(-len(labels) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.2)
        judge.train()
        for _ in tqdm(range(epochs), progress, unit="epoch", disable=progress is None):
            for rows in _batches(features.lengths, batch, generator):
                longest = int(features.lengths[rows].max())
                heard = augment(Sequence(features.values[rows, :longest].float(), features.lengths[rows]), generator)
                loss = F.cross_entropy(judge(heard)[0], target[rows], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return judge.eval()


def _batches(lengths: Tensor, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Shuffled rows in batches of about equal length, so that little of a batch is padding."""
    order = torch.randperm(len(lengths), generator=generator)
    pools = [pool[lengths[pool].argsort()] for pool in order.split(8 * batch)]
    batches = [rows for pool in pools for rows in pool.split(batch)]
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]

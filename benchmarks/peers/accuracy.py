"""What do MultiVae's models reach on spoken digits, trained as long, judged alike and given the same fitted prior?

    python -m benchmarks.peers.accuracy --data-dir DIR  # 5 models and ours, 2 minutes of training each, one thread

Every finished run is a line of benchmarks/results/peers.jsonl and is not run again; the table of all of them is
benchmarks/results/peers.md. MultiVae comes with the extra `peers`.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.ledger import Ledger, Record
from benchmarks.peers.fixed_length import FixedLength, silence
from benchmarks.peers.metrics import Drawn, verdict
from benchmarks.quality.spoken_digits import shown
from mmseqvae.config import CACHE_DIR
from mmseqvae.data import Corpus, prepare
from mmseqvae.decoding import FrameSampling
from mmseqvae.evaluation.judges.speech_judges import SpeechJudges
from mmseqvae.features.log_mel import LogMel
from mmseqvae.files import write_text
from mmseqvae.priors.mixtures import fit_mixture
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer
from recipes import spoken_digits as recipe

RESULTS = Path(__file__).parents[1] / "results"
OURS = "mmseqvae"
MODELS = ["MVAE", "MMVAE", "MoPoE", "MVTCAE", "MMVAE+", OURS]
COMPONENTS = 50  # of the mixture fitted to every model's training posteriors, diagonal
NLL_DRAWS = 100
ROWS = 500  # latents that go through a decoder at once


def main(
    data_dir: Path | None = None,
    models: list[str] = MODELS,
    seeds: list[int] = [0],  # noqa: B006
    seconds: float = 120,
    holdout: bool = False,
    draws: int = 50,
    pairs: int = 1000,
    cache_dir: Path = Path(CACHE_DIR),
    results: Path = RESULTS,
) -> None:
    """Train and judge what is not in the results yet, and write the table of everything that is.

    Args:
        data_dir: folder with the recordings of the Free Spoken Digit Dataset; without it they are downloaded.
        models: which of them to run.
        seeds: one training of each model for each.
        seconds: of processor time that a training may take, on one thread.
        holdout: measure on 300 training recordings that are kept back instead of on the test recordings.
        draws: recordings of each word that are generated and judged.
        pairs: matching pairs that are generated and judged, from each prior.
        cache_dir: where recordings, features and judges are kept.
        results: folder of the results.
    """
    if strange := sorted(set(models) - set(MODELS)):
        raise ValueError(f"--models names {strange}; there are {MODELS}")
    torch.set_num_threads(1)
    ledger = Ledger(results / "peers.jsonl")
    split = "valid" if holdout else "test"
    runs = [
        {"model": model, "seed": seed, "seconds": seconds, "split": split, "draws": draws, "pairs": pairs}
        for seed in seeds
        for model in models
    ]
    waiting = ledger.left(runs)
    if waiting:
        bench = Bench.prepare(recipe.prepare_fsdd(cache_dir, data_dir, holdout), split, cache_dir)
        for run in tqdm(waiting, "peers", unit="run"):
            ledger.append({"run": run, **bench.run(**run), **surroundings()})
    text = page(ledger.records())
    print(text)
    write_text(results / "peers.md", text + "\n")


class Bench:
    """The recordings as sequences and as tensors of one length, and the judges that hear every model alike."""

    def __init__(self, corpus: Corpus, split: str, judges: SpeechJudges) -> None:
        front_end, tokenizer = corpus.front_ends["audio"], corpus.front_ends["text"]
        assert isinstance(front_end, LogMel)
        assert isinstance(tokenizer, Tokenizer)
        self.corpus, self.judges, self.front_end = corpus, judges, front_end
        self.fixed = FixedLength(tokenizer, silence(front_end))
        self.train, self.train_words = self._whole("train")
        self.real, self.words = self._whole(split)

    @classmethod
    def prepare(cls, manifest: Path, split: str, cache_dir: Path) -> Bench:
        corpus = prepare(manifest, audio=recipe.AUDIO, cache_dir=cache_dir)
        return cls(corpus, split, recipe.judged(corpus, split, cache_dir))

    def run(self, model: str, seed: int, seconds: float, split: str, draws: int, pairs: int) -> Record:
        """Train one model for `seconds` and judge what it writes."""
        train_and_draw = self._ours if model == OURS else self._peer
        drawn, training, nll = train_and_draw(model, seed, seconds, draws, pairs)
        figures = verdict(drawn, self.front_end, self.real, self.words, self.judges)
        return {"training": training, "figures": figures, "nll": nll}

    def data(self, recordings: Sequence, words: list[str]) -> dict[str, torch.Tensor]:
        """{modality: [B, steps, channels]}, padded."""
        return {"audio": self.fixed.audio(recordings), "text": self.fixed.text(words)}

    def _peer(self, model: str, seed: int, seconds: float, draws: int, pairs: int) -> tuple[Drawn, Record, Record]:
        from benchmarks.peers.multivae_models import KINDS, Peer, train

        kind, data, real = KINDS[model], self.data(self.train, self.train_words), self.data(self.real, self.words)
        trained, training = train(kind, data, seconds, seed)
        peer = Peer(kind, trained, self.fixed.shapes)
        fitted = fit_mixture(peer.posterior_draws(data), COMPONENTS, seed)
        asked = [word for word in sorted(set(self.words)) for _ in range(draws)]

        def pair(z: torch.Tensor) -> tuple[list[str], Sequence]:
            made = [peer.decode(part) for part in z.split(ROWS)]
            audio = torch.cat([part["audio"] for part in made])
            return self.fixed.words(torch.cat([part["text"] for part in made])), self.fixed.recordings(audio)

        drawn = Drawn(
            asked=asked,
            said=self.fixed.recordings(peer.write({"text": self.fixed.text(asked)}, "text", "audio")),
            written=self.fixed.words(peer.write(real, "audio", "text")),
            repeated=self.fixed.recordings(peer.write(real, "audio", "audio")),
            pairs={"prior": pair(peer.sample_prior(pairs)), "fitted": pair(fitted.sample(pairs))},
        )
        return drawn, training, peer.joint_nll(real, NLL_DRAWS, fitted)

    def _ours(self, model: str, seed: int, seconds: float, draws: int, pairs: int) -> tuple[Drawn, Record, Record]:
        """The recipe's own model for as many epochs as fit; its likelihoods have no padding and a learnt scale."""
        from mmseqvae.evaluation.summary import likelihood
        from mmseqvae.training.trainer import fit

        plan = replace(recipe.TRAINING, seed=seed, threads=1, fitted_components=COMPONENTS)
        rows = len(self.train)
        with tempfile.TemporaryDirectory() as folder:
            pace = seconds_of(lambda: fit(self.corpus, Path(folder, "probe"), training=replace(plan, epochs=2))) / 2
            epochs = max(1, round(seconds / pace))
            started = time.process_time()
            trained = fit(self.corpus, Path(folder, "run"), training=replace(plan, epochs=epochs))
            taken = time.process_time() - started
        net = trained.model
        generator = net.generator(seed)
        asked = [word for word in sorted(set(self.words)) for _ in range(draws)]
        typed = {"text": Sequence.from_list([self.fixed.tokenizer.encode(word) for word in asked])}

        def say(noise: float) -> Sequence:
            how = {"audio": FrameSampling(noise=noise)}
            return net.generate(typed, ["audio"], ["text"], 1, how, generator)["audio"]

        def read(want: str) -> Sequence:
            return net.generate({"audio": self.real}, [want], ["audio"], generator=generator)[want]

        def words(tokens: Sequence) -> list[str]:
            return [self.fixed.tokenizer.decode(item) for item in tokens.items()]

        made = {
            "prior": net.sample(pairs, prior=net.training_prior, generator=generator),
            "fitted": net.sample(pairs, generator=generator),
        }
        drawn = Drawn(
            asked=asked,
            said=say(0.5),
            plain=say(0),
            written=words(read("text")),
            repeated=read("audio"),
            pairs={prior: (words(pair["text"]), pair["audio"]) for prior, pair in made.items()},
        )
        parameters = sum(p.numel() for p in net.parameters())
        training = {"epochs": epochs, "seconds": taken, "samples_a_second": epochs * rows / taken}
        split = next(d for name, d in self.corpus.datasets.items() if name != "train" and len(d) == len(self.real))
        priors = likelihood(trained, split, NLL_DRAWS, seed, progress=False)["priors"]
        own = priors.get("learnt", priors["standard"])
        nll = {"prior": own["nll"], "fitted": priors["fitted"]["nll"]}
        return drawn, training | {"parameters": parameters}, nll

    def _whole(self, split: str) -> tuple[Sequence, list[str]]:
        dataset = self.corpus.datasets[split]
        batch = dataset.__getitems__(range(len(dataset)))
        return batch["audio"], [self.fixed.tokenizer.decode(item) for item in batch["text"].items()]


def seconds_of(run: Callable[[], Any]) -> float:
    """Processor time, which a machine that others use too prolongs little."""
    started = time.process_time()
    run()
    return time.process_time() - started


def surroundings() -> Record:
    """What a run was measured with."""
    from importlib.metadata import version

    packages = {name: version(name) for name in ("torch", "multivae", "mmseqvae")}
    return {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), **packages}


# ------------------------------------------------------------------------------------------------------- the table


HEAD = """# MultiVae's models on spoken digits

`python -m benchmarks.peers.accuracy --data-dir DIR`

Free Spoken Digit Dataset, 2,700 training and 300 test recordings. One feature set for every row: 40 standardised
log-mels, 8 kHz, 256 samples, hop 100. MultiVae reads and writes them padded with digital silence or cropped to 64
frames (padding is 45 % of the frames), words as 6 one-hot characters; its silence at the end is cut before it is
judged. Its networks: bidirectional GRU 128 / 64 to read, GRU 128 / 64 fed the latent to write, latent 32, batch 64,
Adam 2e-3, its trainer, its likelihood rescaling, K = 1. Ours: the recipe `spoken_digits` as it is, with fewer epochs.

Every training is meant to have 2 minutes of processor time on one thread, in whole epochs by a pace that is measured
before; what it took stands under "minutes". Judges, words asked for, draws and the
fitted prior (diagonal mixture of 50 on draws from training posteriors) are the same; shares with 95 % intervals. Text
-> audio: MultiVae's frames are the mean, ours have noise 0.5. Diversity: correct draws without frame noise over real.
Joint NLL, nats an item, importance-weighted with K = 100, own prior / fitted one: MultiVae's rows score 64 frames and 6
characters, padding included, with frame scale 1 (2,352.5 nats are its constant); ours scores what was recorded, the end
of both sequences and a learnt scale: not the same quantity."""

COLUMNS = [
    "model", "seed", "split", "minutes", "epochs", "samples/s", "parameters", "text -> audio", "diversity",
    "audio -> text", "audio -> audio", "speaker kept", "joint, own prior", "joint, fitted", "digits, own",
    "digits, fitted", "joint NLL",
]  # fmt: skip


def page(records: list[Record]) -> str:
    """All runs as Markdown, longest budget first, then in the order of MODELS."""
    order = {name: place for place, name in enumerate(MODELS)}
    records = sorted(
        records, key=lambda r: (-r["run"]["seconds"], r["run"]["split"], order[r["run"]["model"]], r["run"]["seed"])
    )
    lines = [HEAD, "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cells(record)) + " |" for record in records]
    packages = sorted({f"{r['date']}: torch {r['torch']}, MultiVae {r['multivae']}, {r['machine']}" for r in records})
    return "\n".join([*lines, "", *packages])


def cells(record: Record) -> list[str]:
    """One row, a cell for each of COLUMNS."""
    run, training, heard, nll = record["run"], record["training"], record["figures"], record["nll"]
    joint = heard["joint"]
    return [
        run["model"], str(run["seed"]), run["split"], f"{training['seconds'] / 60:.1f}", str(training["epochs"]),
        f"{training['samples_a_second']:.0f}", f"{training['parameters']:,}",
        shown(heard["text_to_audio"], 3), f"{heard['diversity']:.2f}", shown(heard["audio_to_text"], 3),
        shown(heard["audio_to_audio"], 3), shown(heard["speaker_kept"], 3),
        shown(joint["prior"]["coherence"], 3), shown(joint["fitted"]["coherence"], 3),
        f"{joint['prior']['effective_words']:.1f}", f"{joint['fitted']['effective_words']:.1f}",
        f"{nll['prior']:.1f} / {nll['fitted']:.1f}",
    ]  # fmt: skip


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.peers.accuracy")

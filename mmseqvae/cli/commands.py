"""The commands train, generate, evaluate and embed; `forecast_and_classify` has others. Imports are light."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mmseqvae.cli.forecast_and_classify import classify, forecast
from mmseqvae.cli.parser import pairs, refuse_file
from mmseqvae.cli.parser import run as run
from mmseqvae.config import (
    CACHE_DIR,
    LogMelConfig,
    ModelConfig,
    ObjectiveConfig,
    TextConfig,
    TrainingConfig,
    WindowConfig,
)
from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.distributed import processes
from mmseqvae.files import SOUNDS, replacing, write_json

AUDIO, TEXT, WINDOWS, MODEL, OBJECTIVE, TRAINING = (
    LogMelConfig(),
    TextConfig(),
    WindowConfig(),
    ModelConfig(),
    ObjectiveConfig(),
    TrainingConfig(),
)


def main(args: list[str] | None = None) -> None:
    """The command `mmseqvae`."""
    commands = {"train": train, "generate": generate, "evaluate": evaluate, "embed": embed}
    run({**commands, "forecast": forecast, "classify": classify}, args, "mmseqvae")


# ------------------------------------------------------------------------------------------------------ commands


def train(
    manifest: Path,
    out: Path | None = None,
    start: Path | None = None,
    tokens: list[str] | None = None,
    frames: list[str] | None = None,
    labels: list[str] | None = None,
    covariates: list[str] | None = None,
    skip_bad: bool = False,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int | None = None,
    audio: LogMelConfig = AUDIO,
    text: TextConfig = TEXT,
    windows: WindowConfig = WINDOWS,
    speeds: list[float] | None = None,
    model: ModelConfig = MODEL,
    objective: ObjectiveConfig = OBJECTIVE,
    training: TrainingConfig = TRAINING,
) -> None:
    """Train a model on your own files and evaluate it on their splits valid and test.

    Args:
        manifest: a .csv, .tsv or .jsonl table, one row an item, with columns audio and text or others named below;
            a folder of sound, .txt and .npz files; lhotse cuts; or a saved Hugging Face data set. See docs/data.md.
        out: the run directory to write, by default runs/NAME of the manifest; an interrupted training goes on there.
        start: (--from RUN) the run directory of a trained model whose weights, tokenizers and features training starts
            from; new symbols are added, and what differs is printed.
        tokens: further columns of text that are modalities.
        frames: columns of .npy files [T, C] that are modalities.
        labels: columns of labels that are modalities, each distinct string one token.
        covariates: columns of labels that condition the modalities and are not modelled, such as the speaker.
        skip_bad: leave bad rows out, listed in skipped.csv, rather than stop.
        cache_dir: where computed features are kept.
        seed: of everything random, the same as --training.seed.
        audio: log-mels of the column audio.
        text: units of the columns of text, such as --text.units words.
        windows: how recordings and other frames that are longer are cut into items, such as --windows.length 5.
        speeds: other speeds that training recordings are also played at, such as 0.9 1.1.
        model: the networks.
        objective: what is maximised.
        training: how long and how fast.
    """
    out = out or Path("runs") / Path(manifest.resolve().name.removesuffix(".gz")).stem
    refuse_file(out)
    if seed is not None:
        training = replace(training, seed=seed)
    from mmseqvae.cli.common import described, is_measured, load_run, next_commands
    from mmseqvae.data import prepare
    from mmseqvae.training.run_state import training_seconds
    from mmseqvae.training.threads import use_threads
    from mmseqvae.training.trainer import check_settings, fit

    check_settings(model, objective, training)  # before any file is read
    use_threads(training.threads)  # for the evaluation, too
    begun = None if start is None else load_run(start)
    ends = {} if begun is None else begun.front_ends
    corpus = prepare(
        manifest, audio=None if ends and audio == AUDIO else audio, text=None if ends and text == TEXT else text,
        start=ends, tokens=tokens or (), frames=frames or (), labels=labels or (),
        covariates=covariates or (), windows=windows, speeds=speeds or (), cache_dir=cache_dir, skip_bad=skip_bad,
    )  # fmt: skip
    from mmseqvae.evaluation.summary import evaluate as measure

    networks = None if start is not None and model == MODEL else model  # those of the run to start from
    trained = fit(corpus, out, model=networks, objective=objective, training=training, start=begun)
    if not processes().first:
        return
    metrics, seconds = out / "metrics.json", training_seconds(out)
    if not is_measured(metrics, seconds):
        figures = {
            split: measure(trained, corpus.datasets[split], seed=training.seed)
            for split in ("valid", "test")
            if len(corpus.datasets[split])
        }
        write_json(metrics, {"run": described("mmseqvae train", training, seconds), **figures})
    print("\n".join(next_commands(out, manifest, corpus)))


def generate(
    run: Path,
    out: Path | None = None,
    text: str = "",  # not `str | None`, for which the parser takes "null" and "# a" for None
    audio: Path | None = None,
    given: list[str] | None = None,
    covariates: list[str] | None = None,
    sample: int | None = None,
    interpolate: tuple[str, str] | None = None,
    want: list[str] | None = None,
    samples: int | None = None,
    noise: float | None = None,
    latent_noise: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> None:
    """Write what a trained model makes of a text or a recording, of nothing, or of the way between two of them.

    Args:
        run: the run directory of a trained model.
        out: folder for sounds (.wav), arrays (.npy) and index.csv, by default RUN/generated.
        text: generate the other modalities from this text.
        audio: generate the other modalities from this sound file.
        given: NAME=VALUE of further modalities to generate from, VALUE being a text, a label or an .npy file.
        covariates: NAME=VALUE of what is known and not modelled, such as the speaker; others are unknown.
        sample: invent this many matching items from the prior.
        interpolate: two texts or two sound files; --samples items on the line between them, both ends included.
        want: modalities to write, by default those that are not given.
        samples: how many items, by default 5.
        noise: of frames, 0 for their mode to 1 for a draw from the model; 0.5 by default.
        latent_noise: 1 for draws of what is given (the default), down to 0 for the clearest, which vary least.
        temperature: of tokens, 0 for the likeliest (the default), 1 for a draw from the model.
        top_k: draw tokens from the k likeliest.
        top_p: draw tokens from the likeliest that have this share of the probability together.
        seed: of everything random.
    """
    item, known = _given(text, audio, given or []), pairs(covariates or [], "--covariates")
    ways = {
        "--text, --audio or --given": bool(item),
        "--sample": sample is not None,
        "--interpolate": bool(interpolate),
    }
    chosen = [option for option, there in ways.items() if there]
    if len(chosen) != 1:
        raise ValueError(f"choose one of {', '.join(ways)}" + (f"; got {' and '.join(chosen)}" if chosen else ""))
    if latent_noise is not None and not item:
        raise ValueError("--latent-noise goes with --text, --audio or --given: all else has no posterior to draw from")
    if latent_noise is not None and not 0 <= latent_noise < math.inf:
        raise ValueError(f"--latent-noise must be at least 0 and finite, got {latent_noise}")
    if sample is not None and samples is not None:
        raise ValueError("--samples does not go with --sample N, which already says how many")
    number = sample if sample is not None else 5 if samples is None else samples
    least = 2 if interpolate else 1
    if number < least:
        raise ValueError(f"{'--sample' if sample is not None else '--samples'} must be at least {least}, got {number}")
    for end in interpolate or ():
        if Path(end).suffix.lower() in SOUNDS and not Path(end).is_file():
            raise FileNotFoundError(f"--interpolate {end}: there is no such file")
    out = out or run / "generated"
    refuse_file(out)
    token_settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    tokens = TokenSampling(**{name: value for name, value in token_settings.items() if value is not None})  # type: ignore[arg-type]
    frames = FrameSampling() if noise is None else FrameSampling(noise)

    from mmseqvae.cli.common import check_names, load_run, write_items
    from mmseqvae.data.store.extraction import FileFrontEnd
    from mmseqvae.tokenizers.characters import Tokenizer

    trained = load_run(run)
    check_names(item, trained.model.readable, "is given")
    check_names(known, list(trained.model.covariates), "is given by --covariates", "covariate")
    check_names(want or [], trained.model.writable, "is wanted")
    wanted = want or [name for name in trained.model.writable if name not in item] or trained.model.writable
    decode: dict[str, Sampling] = {
        name: tokens if isinstance(trained.front_ends[name], Tokenizer) else frames for name in wanted
    }
    if noise is not None and frames not in decode.values():
        raise ValueError(f"--noise is for frames, and {wanted} are tokens")
    if tokens != TokenSampling() and tokens not in decode.values():
        raise ValueError(f"--temperature, --top-k and --top-p are for tokens, and {wanted} are frames")

    if interpolate:
        a, b = ({"audio" if Path(end).suffix.lower() in SOUNDS else "text": end} for end in interpolate)
        check_names([*a, *b], trained.model.readable, "is interpolated")
        made = trained.interpolate(a | known, b | known, number, wanted, decode, seed)
    elif sample is not None:
        logging.getLogger(__name__).info("drawn from the prior: %s", trained.model.prior)
        made = trained.sample(number, wanted, decode, seed, **known)
    else:
        spread = 1.0 if latent_noise is None else latent_noise
        made = trained.generate(wanted, number, decode, seed, spread, **item, **known)
    is_file = {name: isinstance(front_end, FileFrontEnd) for name, front_end in trained.front_ends.items()}
    kept = {n: number * [os.path.abspath(value) if is_file[n] else value] for n, value in {**item, **known}.items()}
    write_items(trained, {**kept, **made}, out, files=wanted)


def evaluate(
    run: Path,
    manifest: Path,
    split: Literal["train", "valid", "test"] = "test",
    out: Path | None = None,
    draws: int = 100,
    skip_bad: bool = False,
    cache_dir: Path = Path(CACHE_DIR),
    seed: int = 0,
) -> None:
    """Measure a trained model on one split of a manifest, as JSON on standard output.

    Args:
        run: the run directory of a trained model.
        manifest: a table or folder like the one that the model was trained on.
        split: which rows.
        out: a .json file to write the figures to as well.
        draws: latent draws an item for the likelihoods.
        skip_bad: leave bad rows out rather than stop.
        cache_dir: where computed features are kept.
        seed: of everything random.
    """
    if draws < 1:
        raise ValueError(f"--draws must be at least 1, got {draws}")
    from mmseqvae.cli.common import read_run

    trained, corpus = read_run(run, manifest, cache_dir, skip_bad)
    dataset = corpus.datasets[split]
    if not len(dataset):
        there = {name: len(rows) for name, rows in corpus.datasets.items()}
        raise ValueError(f"{manifest}: no row is in the split {split}; its splits hold {there}")
    from mmseqvae.evaluation.summary import evaluate as measure

    figures = measure(trained, dataset, draws=draws, seed=seed)
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    if out is not None:
        write_json(out, figures)


def embed(
    run: Path,
    manifest: Path,
    *,
    out: Path,
    given: list[str] | None = None,
    skip_bad: bool = False,
    cache_dir: Path = Path(CACHE_DIR),
) -> None:
    """Write the posterior of every row as arrays ids, splits, labels [N], means and logvars [N, D] ("" is no label).

    Args:
        run: the run directory of a trained model.
        manifest: a table or folder like the one that the model was trained on; its splits may be any.
        out: the .npz file to write.
        given: modalities to read, by default all.
        skip_bad: leave bad rows out rather than stop.
        cache_dir: where computed features are kept.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out {out}: the name must end in .npz")
    import numpy as np

    from mmseqvae.cli.common import read_run
    from mmseqvae.data.data_warning import warn
    from mmseqvae.pipeline.dataset_posteriors import posteriors

    trained, corpus = read_run(run, manifest, cache_dir, skip_bad, given)

    datasets = {split: dataset for split, dataset in corpus.datasets.items() if len(dataset)}
    posterior = [posteriors(trained.model, dataset, given) for dataset in datasets.values()]
    names = given or trained.model.readable
    steps = [np.sum([dataset.lengths(name) for name in names], axis=0) for dataset in datasets.values()]
    empty = int((np.concatenate(steps) == 0).sum())
    if empty:
        warn(f"{empty} rows hold none of {names}: theirs is the prior, mean 0")
    with replacing(out) as part:
        np.savez(
            part,
            ids=np.array([name for dataset in datasets.values() for name in dataset.ids]),
            splits=np.array([split for split, dataset in datasets.items() for _ in dataset.ids]),
            labels=np.array([label or "" for dataset in datasets.values() for label in dataset.labels]),
            means=np.concatenate([q.mean.cpu().numpy() for q in posterior]),
            logvars=np.concatenate([q.variance.log().cpu().numpy() for q in posterior]),
        )
    print(out)


def _given(text: str, audio: Path | None, others: list[str]) -> dict[str, str]:
    """What is given, {modality: text or path}. Raises ValueError for what is malformed or given twice."""
    shown = {"text": text} if text else {}
    if audio is not None:
        if not audio.is_file():
            raise FileNotFoundError(f"--audio {audio}: there is no such file")
        shown["audio"] = str(audio)
    return pairs(others, "--given", shown)

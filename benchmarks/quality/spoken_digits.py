"""What does the recipe of spoken digits reach? One table: the median of its seeds beside the bars it is held to.

    python -m benchmarks.quality.spoken_digits --source fsdd --data-dir DIR        # seeds 0, 1 and 2, two side by side

Trains the recipe once for each seed (what is finished is kept), reads the figures that it leaves, lets a recogniser
and a quality model made by others listen to its WAVs beside the ceiling (test recordings through log-mel and
Griffin-Lim) and the noise control, and writes benchmarks/results/spoken_digits-SOURCE.md and .json.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from mmseqvae.config import CACHE_DIR
from mmseqvae.data import Corpus, decode_items, prepare
from mmseqvae.evaluation.judges.pocketsphinx_recogniser import Recogniser, dnsmos
from mmseqvae.evaluation.summary import share_to_dict
from mmseqvae.features.log_mel import LogMel, read_audio
from mmseqvae.files import write_json, write_text
from mmseqvae.metrics import kept
from mmseqvae.pipeline.trained_model import load
from recipes import spoken_digits as recipe

RESULTS = Path(__file__).parents[1] / "results"
CLIPS = 60  # of each kind, for the quality model, which takes 0.6 s a clip
NOISES = 200  # clips of noise for the recogniser
Figures = dict[str, Any]


class Row(NamedTuple):
    """One line of the table: what is measured, where it stands in the figures of a seed, its bars, digits shown."""

    name: str
    of: Callable[[Figures], Any]
    least: float | None = None
    digits: int = 3
    most: float | None = None

    def bar(self, value: float | None) -> str:
        """What is asked, and whether `value` meets it."""
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", self.least), ("<=", self.most)) if bound is not None]
        if not bounds:
            return ""
        met = value is not None and (self.least or -np.inf) <= value <= (np.inf if self.most is None else self.most)
        return f"{', '.join(bounds)} ({'met' if met else 'MISSED'})"


def heard(*path: str) -> Callable[[Figures], Any]:
    def find(figures: Figures) -> Any:
        found: Any = figures
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return find


def speaker_over_judge(figures: Figures) -> float | None:
    """Voices kept when a recording is said again, over the share of recordings whose voice the judge itself hears."""
    kept_ = heard("coherence", "audio_to_audio", "speaker_kept", "log_mel", "value")(figures)
    own = heard("judges", "speaker", "log_mel", "value")(figures)
    return kept_ / own if kept_ is not None and own else None


def joint(prior: str, *path: str) -> Callable[[Figures], Any]:
    return heard("coherence", "joint", prior, *path)


def nll(prior: str, figure: str = "nll") -> Callable[[Figures], Any]:
    return heard("evaluation", "likelihood", "priors", prior, figure)


ROWS = [
    Row("text -> audio, frame noise 0", heard("coherence", "text_to_audio", "noise 0", "log_mel")),
    Row("text -> audio, frame noise 0.5", heard("coherence", "text_to_audio", "noise 0.5", "log_mel"), 0.98),
    Row("text -> audio, frame noise 0.5, WAV", heard("coherence", "text_to_audio", "noise 0.5", "wav"), 0.96),
    Row("text -> audio, frame noise 1", heard("coherence", "text_to_audio", "noise 1", "log_mel"), 0.96),
    Row("diversity", heard("coherence", "variety", "diversity"), 0.65),
    Row("diversity, aligned in time", heard("coherence", "variety", "aligned_diversity")),
    Row("copying: distance ratio", heard("coherence", "variety", "copying", "distance_ratio"), 0.8, most=1.25),
    Row("copying: closer than real", heard("coherence", "variety", "copying", "closer_than_real"), most=0.02),
    Row("audio -> text, exact", heard("coherence", "audio_to_text", "exact"), 0.99),
    Row("audio -> text, character error rate", heard("coherence", "audio_to_text", "character_error_rate")),
    Row("audio -> audio, digit kept", heard("coherence", "audio_to_audio", "digit_kept", "log_mel"), 0.98),
    Row("audio -> audio, digit kept, WAV", heard("coherence", "audio_to_audio", "digit_kept", "wav"), 0.95),
    Row("audio -> audio, speaker kept", heard("coherence", "audio_to_audio", "speaker_kept", "log_mel")),
    Row("    over the speaker judge's accuracy", speaker_over_judge, 0.97),
    Row("joint coherence, N(0, I)", joint("standard", "coherence", "log_mel")),
    Row("joint coherence, prior learnt with the model", joint("learnt", "coherence", "log_mel"), 0.95),
    Row("joint coherence, prior learnt, WAV", joint("learnt", "coherence", "wav")),
    Row("joint coherence, fitted mixture", joint("fitted", "coherence", "log_mel"), 0.97),
    Row("joint coherence, fitted mixture, WAV", joint("fitted", "coherence", "wav"), 0.90),
    Row("joint coherence, 10 components", joint("small", "coherence", "log_mel")),
    Row("effective digits, prior learnt", joint("learnt", "effective_words"), 9.5, 2),
    Row("effective digits, fitted mixture", joint("fitted", "effective_words"), 9.5, 2),
    Row("recogniser on generated WAVs", heard("recogniser", "generated")),
    Row("    over its accuracy on the ceiling", heard("recogniser", "share_of_ceiling"), 0.90),
    Row("DNSMOS of generated WAVs, overall", heard("dnsmos", "overall"), None, 2),
    Row("mel-cepstral distortion, dB", heard("evaluation", "spectra", "audio", "reconstruction"), None, 2),
    Row("    of Griffin-Lim alone", heard("evaluation", "spectra", "audio", "griffin_lim"), None, 2),
    Row("joint NLL, prior learnt, nats an item", nll("learnt"), None, 1),
    Row("    nats a step", nll("learnt", "nll_per_step"), None, 2),
    Row("    effective draws of 100", nll("learnt", "effective_draws"), None, 1),
    Row("joint NLL, fitted mixture, nats an item", nll("fitted"), None, 1),
    Row("joint NLL, N(0, I), nats an item", nll("standard"), None, 1),
    Row("KL, nats an item", heard("evaluation", "latent", "kl", "joint"), None, 1),
    Row("active units", heard("evaluation", "latent", "active_units", "joint"), None, 0),
    Row("minutes of training", lambda figures: figures["run"]["training_seconds"] / 60, None, 1, most=15),
]


def main(
    source: Literal["synth", "fsdd"] = "fsdd",
    data_dir: Path | None = None,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    out: Path = Path("runs/benchmark"),
    cache_dir: Path = Path(CACHE_DIR),
    results: Path = RESULTS,
    side_by_side: int = 2,
    options: list[str] | None = None,
) -> None:
    """Train the recipe for every seed, print the table of what it reached, and write it.

    Args:
        source: the recipe's data.
        data_dir: folder with the recordings of fsdd; without it they are downloaded.
        seeds: one training each.
        out: folder of the run directories, which are kept and used again.
        cache_dir: where recordings, features and judges are kept.
        results: folder for the table.
        side_by_side: trainings at a time, one thread each.
        options: further options of the recipe as NAME=VALUE, such as training.epochs=3.
    """
    # Everything that trainings share is made here, before several of them would make it at once.
    manifest = recipe.prepare_synth(cache_dir) if source == "synth" else recipe.prepare_fsdd(cache_dir, data_dir)
    corpus = prepare(manifest, audio=recipe.AUDIO, cache_dir=cache_dir)
    recipe.judged(corpus, "test", cache_dir)

    runs = {seed: out / f"spoken_digits-{source}-{seed}" for seed in seeds}
    shared = ["--source", source, "--cache-dir", str(cache_dir), *[f"--{option}" for option in options or []]]
    shared += ["--data-dir", str(data_dir)] if data_dir is not None else []
    train_all(runs, shared, side_by_side)

    front_end = corpus.front_ends["audio"]
    assert isinstance(front_end, LogMel)
    rate = front_end.config.sample_rate
    noise = Recogniser().noise_control(NOISES)
    ceiling = outside(through_griffin_lim(corpus), rate)
    recorded = outside(as_recorded(corpus, rate), rate)
    ceiling["recogniser"]["recorded"] = recorded["recogniser"]["generated"]
    ceiling["dnsmos"]["recorded"] = recorded["dnsmos"]["overall"]
    figures: dict[int, Figures] = {}
    for seed, run in runs.items():
        found = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        draws, trained = found["coherence"]["draws_a_word"], load(run)
        said = {word: trained.generate("audio", draws, seed=seed, text=word)["audio"] for word in recipe.WORDS}
        found |= outside([(word, wave) for word, waves in said.items() for wave in waves], rate)
        right, best = found["recogniser"]["generated"]["value"], ceiling["recogniser"]["generated"]["value"]
        found["recogniser"]["share_of_ceiling"] = right / best if best else None
        figures[seed] = found

    command = f"python -m benchmarks.quality.spoken_digits --source {source}" + (" --data-dir DIR" if data_dir else "")
    command += f" --seeds {' '.join(map(str, seeds))}" + (f" --options {' '.join(options)}" if options else "")
    text = page(figures, ceiling, noise, command)
    print(text)
    write_text(results / f"spoken_digits-{source}.md", text + "\n")
    everything = {
        "command": command,
        "ceiling": ceiling,
        "noise": noise,
        "seeds": {str(seed): f for seed, f in figures.items()},
    }
    write_json(results / f"spoken_digits-{source}.json", everything)


def train_all(runs: dict[int, Path], shared: list[str], side_by_side: int) -> None:
    """Run the recipe for every seed in processes of one thread each; what they print goes to a log beside the run.

    Raises RuntimeError with the end of the log where one fails; the others are ended, and go on from there next time.
    """
    waiting, running = dict(runs), dict[int, subprocess.Popen[bytes]]()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    try:
        with tqdm(total=len(runs), desc="seeds", unit="run") as bar:
            while waiting or running:
                while waiting and len(running) < side_by_side:
                    seed, run = waiting.popitem()
                    run.parent.mkdir(parents=True, exist_ok=True)
                    command = [sys.executable, "-m", "recipes.spoken_digits", "--out", str(run), "--seed", str(seed)]
                    with run.with_suffix(".log").open("wb") as log:
                        running[seed] = subprocess.Popen(
                            [*command, "--training.threads", "1", *shared],
                            stdout=log, stderr=subprocess.STDOUT, env=environment,
                        )  # fmt: skip
                time.sleep(0.5)
                bar.update(0)
                for seed, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    if process.returncode:
                        log_file = runs[seed].with_suffix(".log")
                        end = log_file.read_text(encoding="utf-8", errors="replace")[-1500:]
                        raise RuntimeError(f"seed {seed} failed; the end of {log_file}:\n{end}")
                    del running[seed]
                    bar.update()
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def through_griffin_lim(corpus: Corpus) -> list[tuple[str, np.ndarray]]:
    """The test recordings as log-mels made a waveform again, with their words: the best that a model could sound."""
    dataset = corpus.datasets["test"]
    batch = decode_items(corpus.front_ends, dataset.__getitems__(range(len(dataset))))
    return list(zip(batch["text"], batch["audio"], strict=True))


def as_recorded(corpus: Corpus, rate: int) -> list[tuple[str, np.ndarray]]:
    """The test recordings themselves, with their words."""
    rows = [row.cells for row in corpus.manifest.rows if row.split == "test"]
    return [(cells["text"], read_audio(cells["audio"], rate)) for cells in rows]


def outside(made: list[tuple[str, np.ndarray]], rate: int) -> Figures:
    """What judges made by others hear in (word, waveform)s: words, and quality on clips spread evenly over them."""
    words, waves = zip(*made, strict=True)
    recognised = Recogniser().recognise(tqdm(waves, "recogniser", unit="clip"), rate)
    chosen = [waves[i] for i in np.linspace(0, len(waves) - 1, min(CLIPS, len(waves))).astype(int)]
    scores = [dnsmos([wave], rate) for wave in tqdm(chosen, "quality", unit="clip")]
    return {
        "recogniser": {"generated": share_to_dict(kept(words, recognised))},
        "dnsmos": {name: float(np.mean([score[name] for score in scores])) for name in scores[0]},
    }


# ------------------------------------------------------------------------------------------------------- the table


def page(figures: dict[int, Figures], ceiling: Figures, noise: dict[str, int], command: str) -> str:
    """The table as Markdown, and under it what it was measured with."""
    first = next(iter(figures.values()))
    judges, run = first["judges"], first["run"]
    lines = [
        f"# Spoken digits, {run['source']}",
        "",
        f"`{command}`",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} with {os.cpu_count()} cores, one thread a training,",
        f"torch {run['torch']}. {first['coherence']['draws_a_word']} draws a word, one latent of the posterior,",
        "greedy text, frame noise 0.5 unless said; in brackets 95 % intervals of the shares.",
        "",
        "| measure | bar | median | " + " | ".join(f"seed {seed}" for seed in figures) + " |",
        "|---|---|---|" + "---|" * len(figures),
    ]
    for row in ROWS:
        values = [row.of(found) for found in figures.values()]
        known = [float(v["value"] if isinstance(v, dict) else v) for v in values if measured(v)]
        middle = f"**{median(known):.{row.digits}f}**" if known else "none"
        bar = row.bar(median(known) if known else None)
        lines.append(f"| {row.name} | {bar} | {middle} | " + " | ".join(shown(v, row.digits) for v in values) + " |")
    recognised, quality = ceiling["recogniser"], ceiling["dnsmos"]["overall"]
    lines += [
        "",
        *[
            f"- The judge of the {name} hears {shown(found['log_mel'], 3)} of real recordings right,"
            f" {shown(found['wav'], 3)} of them after log-mel and Griffin-Lim ({found['on']})."
            for name, found in judges.items()
        ],
        "- The ceiling, test recordings through log-mel and Griffin-Lim:"
        f" recogniser {shown(recognised['generated'], 3)},"
        f" DNSMOS {quality:.2f}; as recorded: recogniser {shown(recognised['recorded'], 3)},"
        f" DNSMOS {ceiling['dnsmos']['recorded']:.2f}.",
        "- Noise control: what the recogniser hears in white noise, "
        + ", ".join(f"{word} {count / max(1, sum(noise.values())):.2f}" for word, count in noise.items() if count)
        + ".",
        *[
            f"- Seed {seed}: voices heard in generated words: "
            + ", ".join(f"{who} {count}" for who, count in found["coherence"]["variety"]["speakers"].items() if count)
            + "."
            for seed, found in figures.items()
        ],
    ]
    return "\n".join(lines)


def measured(value: Any) -> bool:
    return value is not None and not (isinstance(value, dict) and value["value"] is None)


def shown(value: Any, digits: int) -> str:
    """A number, or a share with its interval."""
    if not measured(value):
        return "none"
    if isinstance(value, dict):
        return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
    return f"{value:.{digits}f}"


if __name__ == "__main__":
    from mmseqvae.cli.parser import run

    run(main, prog="python -m benchmarks.quality.spoken_digits")

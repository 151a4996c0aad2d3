"""The tables and the picture of `benchmarks/known_world/objectives.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import binom

from benchmarks.known_world.cross_generation import miscalibration
from benchmarks.known_world.world import World
from mmseqvae.reporting.figure_to_png import save_png

Record = dict[str, Any]


class Column(NamedTuple):
    """One figure of a run. joint: it is about more than audio from text, which is all that a conditional VAE learns."""

    name: str
    of: Callable[[Record], Any]
    digits: int = 2
    joint: bool = False

    def cell(self, record: Record) -> str:
        """As it stands in the table."""
        value = None if self.joint and record["run"]["objective"] == "cvae" else self.of(record)
        if value is None:
            return ""
        if isinstance(value, dict):
            return f"{value['nats']:.{self.digits}f} ({value['error']:.{self.digits}f})"
        return f"{value:.{self.digits}f}"


def at(*path: str) -> Callable[[Record], Any]:
    def find(record: Record) -> Any:
        found: Any = record["figures"]
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    return find


def trained_under(record: Record) -> str:
    return "learnt" if record["run"].get("prior") == "mixture" else "standard"


def ranks(name: str) -> Callable[[Record], Any]:
    return lambda record: miscalibration(record["figures"]["ranks"][name])


def pair(record: Record) -> Any:
    return at("likelihood", f"pair, {trained_under(record)}")(record)


def average(records: Sequence[Record]) -> Record:
    """One record for the seeds of a run: every figure of `records` averaged, and of lists those of the first.

    Errors are averaged too, not narrowed: they are of the test pairs, which all seeds share.
    """

    def merged(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, dict):
            return {name: merged([value[name] for value in values]) for name in first}
        return sum(values) / len(values) if isinstance(first, float) else first

    return {**records[0], **{name: merged([record[name] for record in records]) for name in ("figures", "seconds")},
            "seeds": [record["run"]["seed"] for record in records]}  # fmt: skip


def all_three(*conditionals: Callable[[Record], Any]) -> Callable[[Record], Any]:
    """What a pair, audio from text and text from audio lose together."""

    def total(record: Record) -> dict[str, float]:
        parts = [part(record) for part in (pair, *conditionals)]
        return {"nats": sum(p["nats"] for p in parts), "error": math.hypot(*(p["error"] for p in parts))}

    return total


WRITTEN = at("likelihood", "audio given text, written"), at("likelihood", "text given audio, written")
HEARD = at("text to audio", "heard"), at("audio to text", "heard")

NATS = [
    Column("all, both ways", all_three(*WRITTEN, *HEARD), joint=True),
    Column("all three, written", all_three(*WRITTEN), joint=True),
    Column("all three, heard", all_three(*HEARD), joint=True),
    Column("pair, prior of training", pair, joint=True),
    Column("pair, fitted prior", at("likelihood", "pair, fitted"), joint=True),
    Column("a given t, own", at("likelihood", "audio given text, own")),
    Column("a given t, written", WRITTEN[0]),
    Column("word lost", at("text to audio", "word lost")),
    Column("voices lost", at("text to audio", "voices lost")),
    Column("voices invented", at("text to audio", "voices invented")),
    Column("voice entropy", at("text to audio", "voice entropy")),
    Column("a given t, heard", HEARD[0]),
    Column("t given a, own", at("likelihood", "text given audio, own"), joint=True),
    Column("t given a, written", WRITTEN[1], joint=True),
    Column("t given a, heard", HEARD[1], joint=True),
]
SHARES = [
    Column("t to a", at("text to audio", "coherent"), 3),
    Column("a to t", at("audio to text", "coherent"), 3, joint=True),
    Column("pairs, N(0, I)", at("pairs", "standard", "coherent"), 3, joint=True),
    Column("pairs, learnt prior", at("pairs", "learnt", "coherent"), 3, joint=True),
    Column("pairs, fitted prior", at("pairs", "fitted", "coherent"), 3, joint=True),
    Column("diversity", at("text to audio", "diversity")),
    Column("ranks of voices", ranks("voice"), 3),
    Column("ranks of log p", ranks("likelihood"), 3),
    Column("ranks of z, q(z given t, a)", ranks("z given both"), 3, joint=True),
    Column("of z, q(z given t)", ranks("z given text"), 3, joint=True),
    Column("of z, q(z given a)", ranks("z given audio"), 3, joint=True),
    Column("steps", lambda record: record["steps"], 0),
    Column("CPU seconds", lambda record: record["seconds"], 0),
    Column("seeds", lambda record: len(record["seeds"]), 0),
]


def page(speakers: int, truth: Mapping[str, float], records: Mapping[str, Record], command: str, bold: str = "") -> str:
    """The tables as Markdown, the row named `bold` in bold, and under them what they were measured with."""
    first = next(iter(records.values()))
    run = first["run"]
    named = {f"**{name}**" if name == bold else name: record for name, record in records.items()}
    real = first["figures"]["real pairs coherent"]
    voices = "v ~ N(0, I)" if speakers == 1 else f"a crowd of {speakers} speakers"
    effective = [
        record["figures"]["likelihood"][f"pair, {trained_under(record)}"]["effective draws"]
        for record in records.values()
        if record["run"]["objective"] != "cvae"
    ]
    least = min(effective, default=0.0)
    machines = sorted({f"{each['date']}, {each['machine']}, torch {each['torch']}" for each in records.values()})
    return "\n".join(
        [
            f"# A world with known truth: {voices}",
            "",
            f"`{command}`",
            "",
            f"{'; '.join(machines)}; one thread a run, seed {run['seed']},",
            "and averages over all seeds for runs that say more of them in the last column (ranks are of the first),",
            f"as many steps as take {run['seconds']:g} CPU seconds, of 256 fresh pairs, {run['draws']} importance draws"
            f" (for the pair at least {least:.0f} of them effective), 500 test pairs.",
            "",
            f"Exact, in nats: H(t) {truth['text']:.4f}, H(a) {truth['audio']:.4f}, H(t, a) {truth['pair']:.4f},"
            f" I(t; a) {truth['information']:.4f},",
            f"H(t given a) {truth['text_given_audio']:.4f}, H(a given t) {truth['audio_given_text']:.4f},"
            f" H(word given t) {truth['word_given_text']:.4f}, H(word given a) {truth['word_given_audio']:.4f}.",
            "",
            "## Nats lost, 0 is the truth",
            "",
            *table(NATS, named, {}),
            "",
            "Own: what decoders and prior know of the conditional. Written: what `generate` draws from, as",
            "likelihood of real items; it differs from its own where q(z given t) is not the model's posterior. Of",
            "what it loses the truth hears in written audio: the word lost, and, of right words, the voices lost,",
            "KL(real, written); voices invented is KL(written, real), and voice entropy 1/2 ln of the determinants of",
            "the covariances of voices, written over real. Heard: minus log p under the truth of what was written,",
            "less the entropy; wrong words raise it, one average voice lowers it below 0. Standard errors in brackets.",
            "All three: a pair under the prior of training, a given t, t given a together. Both ways: the pair,",
            "and both conditionals as written and as heard. Errors of sums as if of independent parts.",
            "",
            "## Shares, spreads and ranks",
            "",
            *table(SHARES, named, {"t to a": real, "a to t": real, "pairs, N(0, I)": real, "diversity": 1.0}),
            "",
            "Coherent: both halves are of one word, by the exact posterior of the word. Diversity: variance of",
            "E[v given a] over that of real audio of the word, right words only. Ranks: KL in nats from flat ranks to",
            "those counted, 20 bins, bias removed: of a real recording among those written from its text, and of",
            "z ~ prior among draws from q(z given x), x ~ p(x given z).",
        ]
    )


def table(columns: list[Column], records: Mapping[str, Record], real: Mapping[str, float]) -> list[str]:
    head = ["run", *[column.name for column in columns]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    if real:
        exact = [f"{real[c.name]:.{c.digits}f}" if c.name in real else "" for c in columns]
        lines.append("| *real pairs* | " + " | ".join(exact) + " |")
    for name, record in records.items():
        lines.append(f"| {name} | " + " | ".join(c.cell(record) for c in columns) + " |")
    return lines


PANELS = {
    "voice": "ranks of a real voice\namong those written",
    "likelihood": "ranks of log p(a | t)\nof a real recording",
    "z given both": "ranks of z,\nq(z | t, a)",
    "z given text": "ranks of z,\nq(z | t)",
    "z given audio": "ranks of z,\nq(z | a)",
}


def picture(world: World, records: Mapping[str, Record], path: Path) -> None:
    """Above: what written audio loses, over what the truth thinks of what is written; 0, 0 is the truth.

    Below, a row a run: voices written for one word over real ones, then rank plots; 95 % of flat ranks lie in the grey.
    """
    import matplotlib.pyplot as plt

    heights = [max(5, 1 + 0.15 * len(records)), 1.5 * len(records)]  # the legend has a line a run
    figure = plt.figure(figsize=(14, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    above, below = parts
    _pulls(above.subplots(1, 2), records)
    rows = below.subplots(len(records), 1 + len(PANELS), squeeze=False)
    for axis, title in zip(rows[0], ["voices written for\nword 0 (grey: real)", *PANELS.values()], strict=True):
        axis.set_title(title, fontsize=9)
    real = world.draw(3000, seed=2)
    real_voices = world.voice_posterior(real.audio).mean[real.word == 0][:300]
    for axes, (name, record) in zip(rows, records.items(), strict=True):
        figures = record["figures"]
        points = torch.tensor(figures["text to audio"]["voices of word 0"]).reshape(-1, 3)
        right = points[:, 2] == 0
        axes[0].scatter(*real_voices.T, s=3, color="0.75")
        axes[0].scatter(*points[right, :2].T, s=3, color="tab:blue")
        axes[0].scatter(*points[~right, :2].T, s=3, color="tab:red")
        axes[0].set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5), xticks=[], yticks=[])
        axes[0].set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=9)
        for axis, kind in zip(axes[1:], PANELS, strict=True):
            counts = torch.tensor(figures["ranks"][kind], dtype=torch.float64)
            n, bins = int(counts[0].sum()), counts.shape[1]
            low, high = binom.interval(0.95, n, 1 / bins)
            axis.axhspan(low / n * bins, high / n * bins, color="0.85")
            for row in counts:
                axis.stairs(row / n * bins, color="tab:blue", alpha=0.6, baseline=None)
            axis.set(ylim=(0, 4), xticks=[], yticks=[0, 1, 2, 3, 4])
    save_png(figure, path, 80)
    plt.close(figure)


def _pulls(axes: Any, records: Mapping[str, Record]) -> None:
    """Two views of text to audio: nats written over nats heard, and voices lost over the word lost."""
    views = [
        (("text to audio", "heard"), ("likelihood", "audio given text, written"), "heard", "written"),
        (("text to audio", "word lost"), ("text to audio", "voices lost"), "word lost", "voices lost"),
    ]
    for axis, (x, y, right, up) in zip(axes, views, strict=True):
        for number, (name, record) in enumerate(records.items(), start=1):
            here = [v["nats"] if isinstance(v, dict) else v for v in (at(*x)(record), at(*y)(record))]
            axis.scatter(*here, s=12, color="tab:blue")
            axis.annotate(str(number), here, xytext=(3, 3), textcoords="offset points", fontsize=8)
            axis.plot([], [], " ", label=f"{number} {name}")
        axis.scatter(0, 0, marker="*", s=80, color="black")
        axis.set(xlabel=f"{right}, nats", ylabel=f"{up}, nats")
    axes[0].set_xscale("symlog", linthresh=1)
    axes[0].set_yscale("symlog", linthresh=1)
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0)

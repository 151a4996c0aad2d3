"""The table and the picture of benchmarks/quality/objectives.py, from the records of its runs and of the peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.ledger import Record
from benchmarks.quality.spoken_digits import heard, measured
from mmseqvae.reporting.figure_to_png import save_png

Rows = Mapping[str, Mapping[str, Any]]


class Column(NamedTuple):
    """A measure: its name, where it stands in a record, the least and the greatest value to reach, digits shown."""

    name: str
    path: tuple[str, ...]
    least: float | None = None
    digits: int = 3
    greatest: float | None = None

    def met(self, value: float) -> bool:
        """There is a bar, and the value is on its right side."""
        low, high = self.least, self.greatest
        return (low, high) != (None, None) and (low is None or value >= low) and (high is None or value <= high)

    @property
    def bar(self) -> str:
        bounds = {">=": self.least, "<=": self.greatest}
        return " ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)

    def of(self, record: Record) -> Any:
        return heard(*self.path)(record)


def joint(prior: str, part: str = "coherence") -> tuple[str, ...]:
    return (
        ("coherence", "joint", prior, part, "log_mel") if part == "coherence" else ("coherence", "joint", prior, part)
    )


SAID = Column("t->a .5", ("coherence", "text_to_audio", "noise 0.5", "log_mel"), 0.98)
DIVERSITY = Column("diversity", ("coherence", "variety", "diversity"), 0.65)
OWN = Column("joint, own", joint("own"), 0.95)
COLUMNS = [
    SAID,
    Column("t->a 1", ("coherence", "text_to_audio", "noise 1", "log_mel"), 0.96),
    DIVERSITY,
    Column("a->t", ("coherence", "audio_to_text", "exact"), 0.99),
    Column("a->a", ("coherence", "audio_to_audio", "digit_kept", "log_mel"), 0.98),
    Column("speaker kept", ("coherence", "audio_to_audio", "speaker_kept", "log_mel")),
    Column("/ judge", ("speaker_kept_over_judge",), 0.97),
    Column("joint, N(0, I)", joint("standard")),
    OWN,
    Column("joint, mixture", joint("fitted"), 0.97),
    Column("joint, flow", joint("flow")),
    Column("joint, resampled", joint("resampled")),
    Column("joint, word first", joint("word")),
    Column("digits, own", joint("own", "effective_words"), 9.5, 1),
    Column("digits, mixture", joint("fitted", "effective_words"), None, 1),
    Column("copies: distance", ("coherence", "variety", "copying", "distance_ratio"), 0.8, 2, 1.25),
    Column("copies: closer", ("coherence", "variety", "copying", "closer_than_real"), None, 3, 0.02),
    Column("NLL, own", ("likelihood", "priors", "own", "nll"), None, 1),
    Column("+-", ("likelihood", "priors", "own", "standard_error"), None, 1),
    Column("NLL, mixture", ("likelihood", "priors", "fitted", "nll"), None, 1),
    Column("draws", ("likelihood", "priors", "own", "effective_draws"), None, 1),
    Column("KL", ("latent", "kl", "joint"), None, 1),
    Column("epochs", ("training", "epochs"), None, 0),
    Column("seconds", ("training", "seconds"), None, 0),
    Column("samples/s", ("training", "samples_a_second"), None, 0),
    Column("parameters", ("training", "parameters"), None, 0),
]

HEAD = """# Every way to share a latent, on spoken digits

`python -m benchmarks.quality.objectives --data-dir DIR`, with `--options` where a row names settings

Free Spoken Digit Dataset. Every row: the same networks, learnt frame scale, batches and learning rate, and about
the same processor time of training on one thread, in whole epochs whose number follows from the time of some steps;
warm-ups take at most a third (beta) or a tenth (learning rate) of them. What networks, token weight and budget share
was chosen for the default, on "valid"; no other row was tuned: what is a row's own is as published but for importance
draws, which cost time (4, MMVAE+ 1; more as published), and private dimensions, half of the 32. Median over seeds,
shares with half of their 95 % interval (of the median seed). Words and recordings come from one posterior draw;
text is greedy; t->a .5 and 1: audio from words at that frame noise, elsewhere 0.5, diversity and copies at 0.
"Own" is the prior that the model was trained with (N(0, I) or one learnt with it); mixture (at most 50 diagonal
components, chosen on held-out posteriors) and flow are fitted after training. To be beaten: resampled training
posteriors, and a uniform word, then q(z given word). NLL: joint, nats an item (standardised frames), 100 draws of
the joint posterior, with their effective number. Under "joint, word first" and t->a a row "after" answers by its
flexible conditional. The first line is what the default is held to."""

SPLITS = {
    "valid": "Settings are chosen here: 300 recordings (takes 5 to 9) that neither models nor judges learnt from.",
    "test": "300 recordings (takes 0 to 4), the official test split; models and judges learnt from all others.",
}


def page(records: Iterable[Record], peers: Iterable[Record], rows: Rows) -> str:
    """All runs as Markdown, a table a split."""
    records = [with_own(record) for record in records]
    lines = [HEAD]
    for split in ("test", "valid"):
        ours = grouped((r for r in records if r["run"]["split"] == split), rows)
        theirs = grouped(map(as_ours, (p for p in peers if p["run"]["split"] == split)), rows)
        if not ours:
            continue
        found = ours | theirs
        lines += ["", f"## {split}", "", SPLITS[split], "", *table(found)]
        if theirs:
            lines += ["", "MultiVae's rows pad to 64 frames and have other networks and a fixed scale (`peers.md`), so "
                      "that their likelihoods cannot stand here."]  # fmt: skip
        lines += ["", *(f"- {line}" for line in priors_said(ours))]
    versions = sorted({f"{r['date']}: torch {r['torch']}, {r['machine']}" for r in records})
    return "\n".join([*lines, "", *versions])


def table(found: Mapping[str, list[Record]]) -> list[str]:
    """A line a row: the medians of its seeds."""
    lines = [cells("row", "seeds", *(c.name for c in COLUMNS)), "|---" * (2 + len(COLUMNS)) + "|"]
    lines.append(cells("**to reach**", "", *(c.bar for c in COLUMNS)))
    for name, seeds in found.items():
        lines.append(cells(name, len(seeds), *(middle(column, seeds) for column in COLUMNS)))
    return lines


def cells(*values: Any) -> str:
    return "| " + " | ".join(map(str, values)) + " |"


def middle(column: Column, seeds: list[Record]) -> str:
    """The median over seeds, a share with half of the interval of the seed that has it; bold where the bar is met."""
    values = sorted((v for v in map(column.of, seeds) if measured(v)), key=number)
    if not values:
        return ""
    value = median(map(number, values))
    shown = f"{value:.{column.digits}f}"
    if column.met(value):
        shown = f"**{shown}**"
    nearest = values[(len(values) - 1) // 2]
    if isinstance(nearest, dict):
        shown += f" ±{(nearest['high'] - nearest['low']) / 2:.3f}"
    return shown


def number(value: Any) -> float:
    return float(value["value"] if isinstance(value, dict) else value)


def grouped(records: Iterable[Record], rows: Rows) -> dict[str, list[Record]]:
    """Records of the seeds of each row, in the order of `rows`, then of their appearance."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(label(record["run"], rows), []).append(record)
    order = {name: place for place, name in enumerate(rows)}
    return dict(sorted(found.items(), key=lambda item: order.get(item[1][0]["run"]["row"], len(order))))


def label(run: Mapping[str, Any], rows: Rows) -> str:
    """The row's name, and what differs from what it says today."""
    usual = rows.get(run["row"], run["settings"])
    names = sorted(usual.keys() | run["settings"].keys())
    others = [f"{n.rpartition('.')[2]} {run['settings'].get(n, 'default')}" for n in names
              if run["settings"].get(n) != usual.get(n)]  # fmt: skip
    others += [f"{run['seconds']:g} s"] if run["seconds"] != 120 else []
    return ", ".join([run["row"], *others])


def with_own(record: Record) -> Record:
    """The same with figures under the prior that the model was trained with by the name of "own"."""
    return {
        **record,
        "coherence": {**record["coherence"], "joint": own_too(record["coherence"]["joint"])},
        "likelihood": with_own_nll(record["likelihood"]),
    }


def with_own_nll(likelihood: Mapping[str, Any]) -> dict[str, Any]:
    return {**likelihood, "priors": own_too(likelihood["priors"])}


def own_too(priors: Mapping[str, Any]) -> dict[str, Any]:
    return {**priors, "own": priors.get("learnt", priors["standard"])}


def as_ours(peer: Record) -> Record:
    """A record of `benchmarks.peers.accuracy` in the shape of those here, without what it did not measure."""
    figures = peer["figures"]
    ours = peer["run"]["model"] == "mmseqvae"
    return {
        "run": {"row": "recipe, fewer epochs" if ours else f"MultiVae {peer['run']['model']}", "settings": {},
                "seconds": peer["run"]["seconds"]},
        "coherence": {
            "text_to_audio": {"noise 0.5": {"log_mel": figures["text_to_audio"]}},
            "variety": {"diversity": figures["diversity"]},
            "audio_to_text": {"exact": figures["audio_to_text"]},
            "audio_to_audio": {"digit_kept": {"log_mel": figures["audio_to_audio"]},
                               "speaker_kept": {"log_mel": figures["speaker_kept"]}},
            "joint": {
                name: {**found, "coherence": {"log_mel": found["coherence"]}}
                for name, found in (("own", figures["joint"]["prior"]), ("fitted", figures["joint"]["fitted"]))
            },
        },
        "training": peer["training"],
    }  # fmt: skip


def priors_said(ours: Mapping[str, list[Record]]) -> list[str]:
    """Which mixtures were chosen, and the judges' own accuracy."""
    sizes: dict[str, int] = {}
    for record in (record for seeds in ours.values() for record in seeds):
        name = record["coherence"]["joint"]["fitted"]["prior"]
        sizes[name] = sizes.get(name, 0) + 1
    judges = next(iter(ours.values()))[0]["judges"]
    return [
        "Fitted: " + ", ".join(f"{name} ({count})" for name, count in sorted(sizes.items())) + ".",
        *(f"The judge of the {name} hears {found['log_mel']['value']:.3f} of {found['on']} right."
          for name, found in judges.items()),
    ]  # fmt: skip


def picture(records: Iterable[Record], peers: Iterable[Record], rows: Rows, split: str, path: Path) -> None:
    """Accuracy against diversity, coloured by what pairs are coherent under the fitted mixture, as PNG."""
    from matplotlib.figure import Figure

    ours = grouped((with_own(r) for r in records if r["run"]["split"] == split), rows)
    theirs = grouped(map(as_ours, (p for p in peers if p["run"]["split"] == split)), rows)
    pairs = Column("", joint("fitted"))
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots()
    names: list[str] = []
    places: list[tuple[float, float]] = []
    for found, marker in ((ours, "o"), (theirs, "s")):
        points = [[median(number(column.of(r)) for r in seeds) for column in (SAID, DIVERSITY, pairs)]
                  for seeds in found.values()]  # fmt: skip
        if points:
            x, y, colour = zip(*points, strict=True)
            drawn = axes.scatter(x, y, c=colour, marker=marker, vmin=0.0, vmax=1.0, cmap="viridis", edgecolors="black")
            places += list(zip(x, y, strict=True))
            names += found
            if marker == "o":
                figure.colorbar(drawn, label="joint coherence under the fitted mixture")
    for index, (name, place) in enumerate(zip(names, places, strict=True), start=1):
        axes.annotate(str(index), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.plot([], [], " ", label=f"{index}  {name}")
    front = sorted(place for place in places if not any(beats(other, place) for other in places))
    axes.plot(*zip(*front, strict=True), color="grey", linewidth=0.8, zorder=0)
    axes.axvline(SAID.least or 0, color="grey", linestyle=":", linewidth=0.8)
    axes.axhline(DIVERSITY.least or 0, color="grey", linestyle=":", linewidth=0.8)
    axes.set_xlabel("text to audio at frame noise 0.5, share heard right")
    axes.set_ylabel("diversity, share of real recordings'")
    squares = "squares are the peers' models, " if theirs else ""
    axes.set_title(f"Spoken digits, {split}: {squares}dotted lines are what is to be reached")
    figure.legend(loc="outside right upper", fontsize=8, handlelength=0, frameon=False)
    save_png(figure, path, 110)


def beats(other: tuple[float, float], place: tuple[float, float]) -> bool:
    """At least as good in both, and better in one."""
    return other != place and other[0] >= place[0] and other[1] >= place[1]

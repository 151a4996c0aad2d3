"""The confusion matrix of a classifier as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmseqvae.files import write_csv
from mmseqvae.reporting.figure_to_png import save_png


def write_confusion(figures: dict[str, Any], folder: Path) -> list[Path]:
    """confusion.csv and confusion.png of a report: rows are true classes, columns predicted ones."""
    from matplotlib.figure import Figure

    classes, counts = figures["classes"], np.array(figures["confusion"])
    rows = ([label, *row] for label, row in zip(classes, counts.tolist(), strict=True))
    write_csv(folder / "confusion.csv", [["true", *classes], *rows])
    size = min(20.0, 3 + 0.35 * len(classes))
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / counts.sum(1, keepdims=True).clip(1), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=f"accuracy {figures['accuracy']['value']:.3f}")
    for i, j in zip(*counts.nonzero(), strict=True) if len(classes) <= 30 else ():
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7)
    save_png(figure, folder / "confusion.png")
    return [folder / "confusion.csv", folder / "confusion.png"]

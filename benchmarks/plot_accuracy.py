"""Draws accuracy.svg from accuracy.json: accuracy against minutes for the ready-made configurations."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import MultipleLocator, PercentFormatter

FOLDER = Path(__file__).resolve().parent

#: Offset of a label from its point, in font points; `OTHERS` where it would cover a neighbour.
PLACE, OTHERS = (5, -10), {"vgg11-fast": (5, 4), "vgg16-bn": (5, 4), "vgg11": (7, -3)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    mpl.rcParams |= {"svg.hashsalt": "accuracy", "svg.fonttype": "none"}  # reproducible bytes; text as text
    measured = json.loads((FOLDER / "accuracy.json").read_text())
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    for number, machine in enumerate(sorted({entry["cpu"] for entry in measured.values()})):
        entries = {name: entry for name, entry in measured.items() if entry["cpu"] == machine}
        minutes, accuracy = ([entry[key] for entry in entries.values()] for key in ("minutes", "accuracy"))
        axes.scatter(minutes, accuracy, marker="os^D"[number], label=f"two cores of an {machine}")
        for name, entry in entries.items():
            place = (entry["minutes"], entry["accuracy"])
            axes.annotate(name, place, xytext=OTHERS.get(name, PLACE), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="minutes from archive to report", ylabel="test accuracy (JPEG copy of CIFAR-10)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(MultipleLocator(0.05))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.margins(0.12)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(FOLDER / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

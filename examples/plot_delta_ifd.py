"""Reads what a run has stored and plots it: Δ-IFD of all answers, and how sure the teacher is of each along the way.

python examples/plot_delta_ifd.py runs/mini delta_ifd.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from npd_ascend import NpdError, StoredGeneration, open_run

ZONES = {"degenerate": "tab:orange", "proximal": "tab:blue", "disconnect": "tab:red"}
SAMPLES = 2000


def histogram(generation: StoredGeneration, axes) -> None:
    """Answers by Δ-IFD, coloured by zone: the share of its surprise that the prompt leaves the teacher, less the
    student's share. Far above zero the teacher cannot follow; below zero it is the surer of the two."""
    table = generation.table("selection", ["delta_ifd", "zone"])
    delta, zone = table["delta_ifd"].to_numpy(), np.array(table["zone"].to_pylist())
    edges = np.linspace(*np.nanquantile(delta, [0.005, 0.995]), 60)
    for name, colour in ZONES.items():
        axes.hist(delta[zone == name], edges, color=colour, label=f"{name}: {np.mean(zone == name):.1%}")
    axes.set(title=f"generation {generation.index}", xlabel="Δ-IFD", ylabel="answers")
    axes.legend(frameon=False)


def certainty(generation: StoredGeneration, axes) -> None:
    """Teacher's probability inside its k best tokens, and of the best, by place in the answer: means over answers."""
    rows = generation.table("rollouts", ["tokens"]).num_rows
    top, offsets = generation.topk(range(min(rows, SAMPLES)))
    lengths = np.diff(offsets)
    place = np.arange(len(top)) - np.repeat(offsets[:-1], lengths)
    count = np.bincount(place)
    probabilities = np.exp(top.logprobs)
    for label, values in (("best", probabilities[:, 0]), (f"best {top.ids.shape[1]}", probabilities.sum(1))):
        axes.plot(np.bincount(place, values) / count, label=label)
    axes.set(title="the teacher along the answer", xlabel="token", ylabel="probability", ylim=(0, 1.02))
    axes.legend(frameon=False)


def main(run_dir: str, out: str = "delta_ifd.png") -> None:
    """Two plots for each generation that has been selected from."""
    done = [g for g in open_run(run_dir).generations if {"selection", "topk"} <= set(g.datasets())]
    if not done:
        sys.exit(f"error: {run_dir} has no generation with a selection yet")
    figure = Figure(figsize=(10, 3.6 * len(done)), layout="constrained")
    for generation, (left, right) in zip(done, figure.subplots(len(done), 2, squeeze=False), strict=True):
        histogram(generation, left)
        certainty(generation, right)
    figure.savefig(Path(out), dpi=120)
    print(f"written to {out}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except NpdError as e:
        sys.exit(f"error: {e}")

"""Draws results.json: curves and final values, mean and range over seeds.

    python -m experiments.mixers_and_ternary.plot [results.json]

Writes result.png and result.svg beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.records import read_record
from bitttt_jax.errors import run_main
from experiments.mixers_and_ternary.run import HERE, MIXERS, WEIGHTS

_NAMES = {
    "attention": "attention",
    "ttt_linear": "TTT-Linear",
    "ttt_mlp": "TTT-MLP",
    "half": "half",
}
_LINES = {"ternary": "-", "float": ":"}
_SMOOTHING = 10
_MARKERS = {"ternary": "o", "float": "s"}


def main(argv: Sequence[str]) -> int:
    """Draws the figure; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    path = Path(argv[0]) if argv else HERE / "results.json"
    runs = list(read_record(path)["runs"].values())
    with figures.figure(2, path.with_name("result")) as (drawn, (curves, finals)):
        for mixer in MIXERS:
            for weights in WEIGHTS:
                own = [r for r in runs if (r["mixer"], r["weights"]) == (mixer, weights)]
                if own:
                    _curve(curves, own, mixer, weights)
                    _final(finals, own, mixer, weights)
        curves.set_title("training loss")
        curves.set_xlabel("steps")
        curves.set_ylabel("nats a token")
        finals.set_title("validation at the end")
        finals.set_ylabel("bits per byte")
        finals.set_xticks(range(len(MIXERS)), list(_NAMES.values()))
        finals.set_xlim(-0.5, len(MIXERS) - 0.5)
        finals.margins(y=0.1)
        finals.grid(axis="x", visible=False)
        handles, labels = curves.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)


def _curve(panel: Any, runs: list[dict[str, Any]], mixer: str, weights: str) -> None:
    """Mean over the seeds and over some rows of metrics, without the first fall."""
    steps = runs[0]["training"]["step"]
    loss = [sum(row) / len(row) for row in zip(*(r["training"]["loss"] for r in runs), strict=True)]
    width = min(_SMOOTHING, len(loss))
    ends = range(min(2 * width, len(loss)), len(loss) + 1)
    panel.plot(
        [steps[end - 1] for end in ends],
        [sum(loss[end - width : end]) / width for end in ends],
        _LINES[weights],
        color=figures.MIXER_COLOURS[mixer],
        label=f"{_NAMES[mixer]}, {weights}",
    )


def _final(panel: Any, runs: list[dict[str, Any]], mixer: str, weights: str) -> None:
    values = [run["validation"]["bits_per_byte"][-1] for run in runs]
    x = list(MIXERS).index(mixer) + (-0.2 if weights == "ternary" else 0.2)
    colour, mean = figures.MIXER_COLOURS[mixer], sum(values) / len(values)
    face = colour if weights == "ternary" else "white"
    panel.vlines(x, min(values), max(values), color=colour, lw=1.5)
    panel.plot([x] * len(values), values, "_", color=colour, markersize=7)
    panel.plot([x], [mean], _MARKERS[weights], color=colour, mfc=face, markersize=8)
    panel.annotate(
        f"{mean:.3f}", (x, max(values)), (0, 5), textcoords="offset points", ha="center", fontsize=8
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Draws results.json: training loss over time, and loss on the validation text.

    python -m experiments.char_shakespeare.plot [results.json]

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
from experiments.char_shakespeare.run import EVALUATION_LENGTHS, HERE, VARIANTS

_NAMES = {"attention": "attention", "ttt_linear": "TTT-Linear"}
_SMOOTHING = 10
_MARKERS = dict(zip(EVALUATION_LENGTHS, "os", strict=True))


def main(argv: Sequence[str]) -> int:
    """Draws the figure; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    path = Path(argv[0]) if argv else HERE / "results.json"
    record = read_record(path)
    runs, yardstick = list(record["runs"].values()), record["yardstick"]
    present = [v for v in VARIANTS if any(run["variant"] == v for run in runs)]
    with figures.figure(2, path.with_name("result")) as (_, (curves, finals)):
        for place, variant in enumerate(present):
            own = [run for run in runs if run["variant"] == variant]
            mixer, is_ternary = VARIANTS[variant]
            _curve(curves, own[0]["training"], variant, mixer, "-" if is_ternary else ":")
            _losses(finals, own, place, figures.MIXER_COLOURS[mixer])
        curves.set_title("training loss, seed 0")
        curves.set_xlabel("seconds of training steps")
        curves.set_ylabel("nats per character")
        curves.legend(fontsize=9)
        loss = yardstick["validation_loss"]
        finals.axhline(loss, color=figures.GREY, lw=1.5, ls="--", zorder=1)
        finals.annotate(
            f"{yardstick['name']}, {yardstick['seconds']:g} s: {loss}", (0.99, loss), (0, 4),
            xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=9,
            color="#555555",
        )  # fmt: skip
        finals.set_title("validation loss, all seeds")
        finals.set_xticks(
            range(len(present)),
            [f"{_NAMES[VARIANTS[v][0]]}\n{v.partition('-')[0]}" for v in present],
        )
        finals.set_xlim(-0.5, len(present) - 0.5)
        finals.margins(y=0.15)
        finals.grid(axis="x", visible=False)
        for seq_len, marker in _MARKERS.items():
            finals.plot([], [], marker, color="#555555", label=f"rows of {seq_len}")
        finals.legend(fontsize=9)


def _curve(panel: Any, training: dict[str, list[float]], variant: str, mixer: str, line: str):
    """Means over some rows of metrics, without the first fall."""
    loss, seconds = training["loss"], training["seconds"]
    width = min(_SMOOTHING, len(loss))
    ends = range(width, len(loss) + 1)
    weights = variant.partition("-")[0]
    panel.plot(
        [seconds[end - 1] for end in ends],
        [sum(loss[end - width : end]) / width for end in ends],
        line,
        color=figures.MIXER_COLOURS[mixer],
        label=f"{_NAMES[mixer]}, {weights}",
    )


def _losses(panel: Any, runs: list[dict[str, Any]], place: int, colour: str) -> None:
    for shift, (seq_len, marker) in zip((-0.2, 0.2), _MARKERS.items(), strict=True):
        values = [run["validation_by_length"][str(seq_len)]["nats_per_character"] for run in runs]
        mean = sum(values) / len(values)
        x = place + shift
        panel.vlines(x, min(values), max(values), color=colour, lw=1.5)
        panel.plot([x] * len(values), values, "_", color=colour, markersize=7)
        panel.plot([x], [mean], marker, color=colour, markersize=8)
        panel.annotate(
            f"{mean:.3f}", (x, max(values)), (0, 5), textcoords="offset points", ha="center",
            fontsize=8,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

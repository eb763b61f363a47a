"""Draws the training benchmark: tokens a second by case, and how they change with T and batch.

    python -m benchmarks.plot benchmarks/results/train_step-MACHINE.json
    python -m benchmarks.plot benchmarks/results/packed-MACHINE.json

Writes train_step-MACHINE-throughput and -growth, or packed-MACHINE-latency (`plot_packed`), beside
the record, as .png and .svg.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import figures, measure, plot_packed
from benchmarks.records import read_record
from benchmarks.train_cases import DTYPES, MIXERS, WEIGHTS
from bitttt_jax.errors import ConfigError, run_main

_WEIGHTS_TEXT = {"int8": "ternary, int8", "fake_quant": "ternary, fake-quant", "float": "float"}
_WEIGHTS_COLOURS = {
    "int8": figures.BLUE,
    "fake_quant": figures.SKY,
    "float": figures.GREY,
    "torch": figures.ORANGE,
}
_TORCH_TEXT = "PyTorch, float"


def main(argv: Sequence[str]) -> int:
    """Draws a record's figures; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    if len(argv) != 1 or argv[0].startswith("-"):
        raise ConfigError(
            "which record is to be drawn?",
            fix="python -m benchmarks.plot benchmarks/results/train_step-MACHINE.json",
        )
    path = Path(argv[0])
    record = read_record(path)
    measured = [case for case in record.get("cases", {}).values() if "summary" in case]
    if not measured:
        raise ConfigError(f"{path} has no measured case")
    where = _machine_text(record)
    if record["title"] == "packed":
        plot_packed.latency(record, path.with_name(f"{path.stem}-latency"), where)
        return
    throughput(measured, path.with_name(f"{path.stem}-throughput"), where)
    growth(measured, path.with_name(f"{path.stem}-growth"), where)


def throughput(cases: list[dict[str, Any]], path: Path, where: str) -> None:
    """Bars of tokens a second, a panel for each type of the activations."""
    # The shape that most cases share.
    shapes = [(case["seq_len"], case["batch"]) for case in cases]
    T, batch = max(set(shapes), key=shapes.count)
    with figures.figure(len(DTYPES), path) as (drawn, axes):
        for panel, dtype in zip(axes, DTYPES, strict=True):
            chosen = {
                (case["mixer"], case["peer"] or case["weights"]): case["summary"]["tokens_per_s"]
                for case in cases
                if (case["seq_len"], case["batch"], case["dtype"]) == (T, batch, dtype)
                and _is_usual(case)
            }
            _bars(panel, chosen)
            panel.set_title(f"{dtype} activations")
        top = max(panel.get_ylim()[1] for panel in axes)
        for panel in axes:
            panel.set_ylim(0, top)
        axes[0].set_ylabel("training tokens per second")
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        drawn.suptitle(f"batch {batch} x {T} tokens, {where}", fontsize=10, color="#444444")


def _bars(panel: Any, chosen: dict[tuple[str, str], dict[str, float]]) -> None:
    kinds = [kind for kind in (*WEIGHTS, "torch") if any(k == kind for _, k in chosen)]
    width = 0.8 / max(len(kinds), 1)
    for index, kind in enumerate(kinds):
        present = [
            (i, chosen[mixer, kind]) for i, mixer in enumerate(MIXERS) if (mixer, kind) in chosen
        ]
        medians = [rate["median"] for _, rate in present]
        panel.bar(
            [i + (index - (len(kinds) - 1) / 2) * width for i, _ in present],
            medians,
            0.9 * width,
            color=_WEIGHTS_COLOURS[kind],
            label=_WEIGHTS_TEXT.get(kind, _TORCH_TEXT),
            yerr=[
                [rate["median"] - rate["q25"] for _, rate in present],
                [rate["q75"] - rate["median"] for _, rate in present],
            ],
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )
    panel.set_xticks(range(len(MIXERS)), MIXERS)
    panel.yaxis.set_major_formatter(_thousands())
    panel.grid(axis="x", visible=False)


def growth(cases: list[dict[str, Any]], path: Path, where: str) -> None:
    """Lines of tokens a second: over the length of rows, and over their number."""
    ours = [
        case
        for case in cases
        if (case["weights"], case["dtype"]) == ("int8", "bfloat16") and _is_usual(case)
    ]
    tokens = max(case["seq_len"] * case["batch"] for case in ours) if ours else 0
    shortest = min((case["seq_len"] for case in ours), default=0)
    with figures.figure(2, path) as (drawn, axes):
        for mixer in MIXERS:
            own = [case for case in ours if case["mixer"] == mixer]
            lengths = [case for case in own if case["seq_len"] * case["batch"] == tokens]
            _line(axes[0], lengths, "seq_len", mixer)
            _line(axes[1], [c for c in own if c["seq_len"] == shortest], "batch", mixer)
        axes[0].set_title(f"longer rows, {tokens:,} tokens a step")
        axes[0].set_xlabel("tokens of a row")
        axes[0].set_ylabel("training tokens per second")
        axes[1].set_title(f"more rows of {shortest:,} tokens")
        axes[1].set_xlabel("rows of a step")
        top = max(panel.get_ylim()[1] for panel in axes)
        for panel in axes:
            panel.set_ylim(0, top)
            panel.yaxis.set_major_formatter(_thousands())
            if panel.lines:
                panel.legend()
        drawn.suptitle(f"ternary int8, bfloat16 activations, {where}", fontsize=10, color="#444444")


def _is_usual(case: dict[str, Any]) -> bool:
    """Whether a case is computed as a run computes it by itself."""
    return (case["form"], case["implementation"]) == ("dual", "auto")


def _line(panel: Any, cases: list[dict[str, Any]], key: str, mixer: str) -> None:
    if len(cases) < 2:
        return
    cases = sorted(cases, key=lambda case: case[key])
    x = [case[key] for case in cases]
    rates = [case["summary"]["tokens_per_s"] for case in cases]
    colour = figures.MIXER_COLOURS[mixer]
    panel.plot(x, [rate["median"] for rate in rates], "o-", color=colour, label=mixer)
    panel.fill_between(
        x, [r["q25"] for r in rates], [r["q75"] for r in rates], color=colour, alpha=0.2, lw=0
    )
    panel.set_xscale("log", base=2)
    panel.set_xticks(x, [f"{value:,}" for value in x])


def _machine_text(record: dict[str, Any]) -> str:
    where = measure.short_description(record["machine"])
    return f"{where}, jax {record['versions']['jax']}, {record['date'][:10]}"


def _thousands() -> Any:
    from matplotlib.ticker import StrMethodFormatter

    return StrMethodFormatter("{x:,.0f}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The figure of packed models: how long a step takes after longer and longer contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import figures

_CASES = {
    "attention": ("attention, bitttt_jax", figures.MIXER_COLOURS["attention"]),
    "llama_cpp": ("attention, llama.cpp", figures.GREY),
    "ttt_linear": ("TTT-Linear, bitttt_jax", figures.MIXER_COLOURS["ttt_linear"]),
}


def latency(record: dict[str, Any], path: Path, where: str) -> None:
    """A panel for either shape: milliseconds of a step over the context, extremes of the rounds.

    Args:
      record: of `benchmarks.packed`.
      path: the figure's, without a suffix.
      where: machine and versions, in words.
    """
    panels = {"BitNet b1.58 2B4T": ("attention", "llama_cpp"), "TTT 125M": ("ttt_linear",)}
    with figures.figure(len(panels), path) as (drawn, axes):
        for panel, (title, names) in zip(axes, panels.items(), strict=True):
            for name in names:
                summary = record["cases"].get(name, {}).get("summary")
                if summary:
                    _line(panel, summary["step_s"], *_CASES[name])
            panel.set_title(title)
            panel.set_xlabel("tokens before the step")
            panel.set_ylim(0)
            if panel.lines:
                panel.legend()
        axes[0].set_ylabel("milliseconds of a step")
        subtitle = f"one sequence, packed ternary weights, {where}"
        drawn.suptitle(subtitle, fontsize=10, color="#444444")


def _line(panel: Any, steps: dict[str, dict[str, float]], label: str, colour: str) -> None:
    contexts = sorted(map(int, steps))
    values = lambda key: [1e3 * steps[str(context)][key] for context in contexts]
    panel.plot(contexts, values("median"), "o-", color=colour, label=label)
    panel.fill_between(contexts, values("min"), values("max"), color=colour, alpha=0.2, lw=0)
    panel.set_xscale("log", base=2)
    panel.set_xticks(contexts, [_short(context) for context in contexts])


def _short(context: int) -> str:
    return f"{context // 1024}k" if context >= 1024 else str(context)

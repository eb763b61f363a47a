"""The look of all figures: light, legible when small, colours for colour-blind readers too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, without the yellow that disappears on white.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F",
)  # fmt: skip
MIXER_COLOURS = {
    "attention": BLUE,
    "ttt_linear": VERMILION,
    "ttt_mlp": GREEN,
    "half": PURPLE,
}
_STYLE = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "svg.fonttype": "none",
    "svg.hashsalt": "bitttt",
}


@contextlib.contextmanager
def figure(panels: int, path: Path, width: float = 9.0, height: float = 4.0) -> Iterator[Any]:
    """Makes a figure with panels side by side; saves it as `path` + .png and `path` + .svg.

    Args:
      panels: how many.
      path: the files' name without a suffix.
      width: inches.
      height: inches.

    Yields:
      The figure and its axes, an array of as many as there are panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE):
        drawn, axes = pyplot.subplots(1, panels, figsize=(width, height), squeeze=False)
        yield drawn, axes[0]
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            target = path.with_name(path.name + suffix)
            partial = target.with_name(f".{target.name}")
            drawn.savefig(partial, format=suffix[1:], metadata=metadata)
            partial.replace(target)
            print(target)
        pyplot.close(drawn)

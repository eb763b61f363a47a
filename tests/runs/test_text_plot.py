from __future__ import annotations

import math
from array import array

import pytest

from bitttt_jax.runs.series import Curve
from bitttt_jax.runs.text_plot import plot, sparkline

EMPTY = Curve()


def curve(steps, values) -> Curve:
    return Curve(array("q", steps), array("d", values))


def drawn(line: Curve, marks: Curve = EMPTY, **options) -> list[str]:
    options = {"width": 29, "height": 6, "ascii_only": True} | options
    return ["".join(text for text, _ in row) for row in plot(line, marks, **options)]


def test_a_line_in_ascii():
    assert drawn(curve([0, 10, 19], [4.0, 0.0, 2.0])) == [
        "      4 |**                  ",
        "        |  **                ",
        "      2 |    ***          ***",
        "        |       **    ****   ",
        "      0 |         ****       ",
        "         0                 19",
    ]


def test_a_line_in_braille_and_marks_over_it():
    rows = drawn(
        curve(range(0, 101, 5), range(100, -1, -5)), curve([50, 100], [100.0, 50.0]),
        ascii_only=False,
    )  # fmt: skip
    assert rows == [
        "    100 │⠉⠢⠤⡀      o         ",
        "        │   ⠈⠉⠢⠤⡀            ",
        "     50 │       ⠈⠉⠢⠤⢄       o",
        "        │            ⠉⠑⠤⢄    ",
        "      0 │                ⠉⠑⠤⢄",
        "         0                100",
    ]


def test_parts_are_told_apart():
    rows = plot(curve([1, 9], [1.0, 2.0]), curve([5], [1.5]), width=30, height=6)
    parts = {part for row in rows for text, part in row if text.strip()}
    assert parts == {"axis", "line", "mark"}
    assert [text for row in rows for text, part in row if part == "mark"] == ["o"]


def test_nothing_to_draw():
    assert plot(EMPTY, EMPTY, width=40, height=8) == []


@pytest.mark.parametrize(
    "values", [[3.0], [3.0, 3.0, 3.0], [0.0], [-1e-30, 1e-30], [1e300, -1e300]]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_flat_and_extreme_curves_fit(values: list[float], ascii_only: bool):
    rows = drawn(curve(range(1, len(values) + 1), values), ascii_only=ascii_only)
    assert len(rows) == 6
    assert {len(row) for row in rows} == {29}


def test_the_first_losses_do_not_flatten_the_rest():
    values = [1000.0, *(2 + math.sin(step / 10) for step in range(1000))]
    rows = drawn(curve(range(1001), values), height=12)
    assert rows[0].split()[0] == "3"
    assert sum("*" in row for row in rows) == 11


def test_long_curves_keep_their_peaks():
    values = [1.0 + (0.001 * (step % 7)) for step in range(100_000)]
    values[54_321] = 0.0
    rows = drawn(curve(range(100_000), values), height=12)
    column = rows[-2].index("*") - 9
    assert column == round(54_321 / 99_999 * 19)


def test_sparklines():
    assert sparkline([], 8) == ""
    assert sparkline([5.0], 8) == "▁"
    assert sparkline(range(8), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline(range(8), 8, ascii_only=True) == "_.-:=+*#"
    assert sparkline(range(8000), 4) == "▁▃▆█"

from __future__ import annotations

import numpy as np
import pytest

from bitttt_jax.inference.stop_strings import StopStrings


def streamed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    text = StopStrings(stops)
    return "".join([*map(text.push, pieces), text.flush()]), text.found


def searched(stops: list[str], text: str) -> tuple[str, bool]:
    """The text before the stop string that ends first, of those the longest."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def test_any_split_of_the_text_gives_what_a_search_gives():
    rng = np.random.default_rng(0)
    draw = lambda low, high: "".join(rng.choice(list("ab\n"), rng.integers(low, high)))
    found = 0
    for _ in range(3000):
        stops, text = [draw(1, 6) for _ in range(rng.integers(0, 4))], draw(0, 25)
        cuts = sorted(rng.integers(0, len(text) + 1, rng.integers(0, 8)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert streamed(stops, pieces) == searched(stops, text), (stops, pieces)
        found += searched(stops, text)[1]
    assert 500 < found < 2900


def test_only_what_may_begin_a_stop_string_is_held_back():
    text = StopStrings(["\nUser:", "END"])
    assert [text.push(piece) for piece in ("one E", "N", "G\n", "Us", "e it", "END")] == [
        "one ",
        "",
        "ENG",
        "",
        "\nUse it",
        "",
    ]
    assert text.found
    assert text.push("more") == text.flush() == ""


def test_without_strings_nothing_is_held_back():
    text = StopStrings([])
    assert text.push("anything") == "anything"
    assert not text.found


@pytest.mark.parametrize("stop", ["ab", "abab"])
def test_the_end_gives_out_what_was_held_back(stop: str):
    assert streamed([stop + "c"], ["x" + stop]) == ("x" + stop, False)

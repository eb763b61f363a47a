"""Numbers, times and safe text."""

import unicodedata

import pytest

from bitttt_jax.runs.console_text import (
    encodable,
    format_bytes,
    format_count,
    format_duration,
    format_losses,
    format_memory,
    progress_line,
    progress_text,
    safe_text,
)


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0"),
        (0.61, "0.61"),
        (999, "999"),
        (999.6, "1 k"),
        (1000, "1 k"),
        (41_200, "41.2 k"),
        (999_999, "1 M"),
        (1_800_000, "1.8 M"),
        (7e9, "7 G"),
        (1.4e20, "140000 P"),
        (-1500, "-1.5 k"),
        (float("nan"), "nan"),
    ],
)
def test_counts(number, text):
    assert format_count(number) == text


def test_counts_with_a_unit():
    assert format_count(41_200, "tok/s") == "41.2 ktok/s"
    assert format_count(52.3e9, "FLOP/s") == "52.3 GFLOP/s"


@pytest.mark.parametrize(
    "number, decimal, binary",
    [
        (12, "12 B", "12 B"),
        (1023.4, "1.02 kB", "1023 B"),
        (1023.6, "1.02 kB", "1 KiB"),
        (330_000, "330 kB", "322 KiB"),
        (21_400_000, "21.4 MB", "20.4 MiB"),
        (1023 * 2**20, "1.07 GB", "1023 MiB"),
        (2**30, "1.07 GB", "1 GiB"),
        (20.9 * 2**30, "22.4 GB", "20.9 GiB"),
    ],
)
def test_sizes(number, decimal, binary):
    assert format_bytes(number) == decimal
    assert format_memory(number) == binary


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00"),
        (76, "1:16"),
        (3599.7, "1:00:00"),
        (3725, "1:02:05"),
        (2 * 86400 + 3 * 3600 + 240, "2d 03:04"),
        (float("inf"), "?"),
        (float("nan"), "?"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def test_losses_of_a_diverged_run():
    assert format_losses(2.3, 3.32) == "loss 2.300  ppl 9.974  bpb 3.320"
    assert format_losses(float("nan")) == "loss nan  ppl nan"
    assert format_losses(1e5) == "loss 100000.000  ppl inf"


def test_safe_text_keeps_no_character_that_acts_on_a_terminal():
    every_character = "".join(map(chr, range(0x11000)))
    for multiline in (False, True):
        safe = safe_text(every_character, multiline=multiline)
        kinds = {unicodedata.category(char) for char in safe if char != "\n"}
        assert kinds.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
        assert safe.encode()  # no lone surrogates
        assert ("\n" in safe) == multiline
    assert safe_text("naïve 日本 🙂 [b]") == "naïve 日本 🙂 [b]"
    assert safe_text("a\r\n\tb", multiline=True) == "a\n    b"


def test_encodable():
    assert encodable("3 × 2 · Δ … ü 日", "utf-8") == "3 × 2 · Δ … ü 日"
    assert encodable("3 × 2 · Δ … ü 日", "ascii") == "3 x 2 - diff ... ? ?"
    assert encodable("3 × 2", "latin-1") == "3 × 2"


def test_progress_line_is_key_value_pairs_without_spaces(script):
    line = progress_line(620, 1000, script.METRICS, 76.4)
    assert line == (
        "step=620/1000 loss=2.214 ppl=9.152 bpb=3.194 lr=0.0021 grad_norm=0.612 tok_s=41200 "
        "tflops_dev=0.0523 mfu=0.312 step_s=0.2 mem_peak_gib=0.31 eta=76s"
    )
    assert progress_line(1, 2, {"train/loss": float("nan")}) == "step=1/2 loss=nan"


@pytest.mark.parametrize(
    "width, text",
    [
        (33, "620/1000  loss 2.214  eta 1:16"),
        (66, "620/1000  loss 2.214  ppl 9.152  bpb 3.194  41.2 ktok/s  eta 1:16"),
        (
            200,
            "620/1000  loss 2.214  ppl 9.152  bpb 3.194  lr 0.0021  gnorm 0.61  0.2 s/step  "
            "0.31 GiB  41.2 ktok/s  52.3 GFLOP/s (31%)  eta 1:16",
        ),
        (6, "620/10"),
    ],
)
def test_progress_text_fits_and_keeps_what_matters(script, width, text):
    assert progress_text(620, 1000, script.METRICS, 76, width=width) == text


def test_progress_text_never_exceeds_its_width(script):
    for width in range(1, 250):
        assert len(progress_text(620, 1000, script.METRICS, 76, width=width)) <= width

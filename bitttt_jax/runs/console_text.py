"""Numbers, sizes and times as the console writes them, and text made safe to print."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence

_COUNT_UNITS = ("", "k", "M", "G", "T", "P")
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MEMORY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
# Control characters, invisible formatting (bidi overrides), lone surrogates, line separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_ASCII = str.maketrans({"·": "-", "–": "-", "…": "...", "×": "x", "Δ": "diff", "←": "<-"})

# Metrics on the progress line, in order: tag -> name in key=value lines.
_PLAIN_NAMES: Mapping[str, str] = {
    "train/loss": "loss",
    "train/ppl": "ppl",
    "train/bpb": "bpb",
    "lr": "lr",
    "grad_norm": "grad_norm",
    "perf/tokens_per_s": "tok_s",
    "perf/tflops_per_device": "tflops_dev",
    "perf/mfu": "mfu",
    "perf/step_s": "step_s",
    "mem/peak_gib": "mem_peak_gib",
}
# What a narrow terminal loses first.
_DROP_ORDER = ("step_s", "mem", "gnorm", "flops", "lr", "bpb", "ppl", "tok/s", "eta", "loss")


def format_count(number: float, unit: str = "") -> str:
    """A number with three digits and a decimal prefix: `1.8 M`, `41 k`, or `41 ktok/s`."""
    value, prefix = _scale(number, 1000, _COUNT_UNITS)
    return f"{value} {prefix}{unit}".rstrip()


def format_bytes(number: float) -> str:
    """A file's size in decimal units: `21.4 MB`."""
    return " ".join(_scale(number, 1000, _BYTE_UNITS))


def format_memory(number: float) -> str:
    """An amount of memory in binary units: `20.9 GiB`."""
    return " ".join(_scale(number, 1024, _MEMORY_UNITS))


def format_duration(seconds: float) -> str:
    """A time span: `0.3 s`, `42 s`, `1:16`, `1:02:05`, `2d 03:04`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_losses(loss: float, bpb: float | None = None) -> str:
    """A loss (nats per token) with its perplexity and, if known, the bits per byte."""
    text = f"loss {loss:.3f}  ppl {perplexity(loss):.4g}"
    return text if bpb is None else f"{text}  bpb {bpb:.3f}"


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float can't hold it."""
    return math.inf if loss > 700 else math.exp(loss)


def safe_text(text: str, *, multiline: bool = False) -> str:
    """Removes what could move the cursor, change colours, or hide or reorder other text.

    Args:
      text: anything, such as what a model generated.
      multiline: keep line breaks and tabs (as spaces); otherwise they become one space.
    """
    text = text.replace("\r\n", "\n").expandtabs(4)
    text = text if multiline else text.replace("\n", " ")
    return "".join(
        char
        for char in text
        if char == "\n" or unicodedata.category(char) not in _UNSAFE_CATEGORIES
    )


def encodable(text: str, encoding: str) -> str:
    """Replaces what a stream of this encoding can't hold, by look-alikes where there are any."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)


def progress_line(
    step: int, steps: int, metrics: Mapping[str, float], eta_s: float | None = None
) -> str:
    """Training progress as `key=value` pairs, for files.

    Args:
      step: steps done.
      steps: steps to do.
      metrics: values by tag; tags without a place on this line are left out.
      eta_s: seconds left.
    """
    known = [(name, metrics[tag]) for tag, name in _PLAIN_NAMES.items() if tag in metrics]
    pairs = [f"step={step}/{steps}", *(f"{name}={_plain_number(value)}" for name, value in known)]
    return " ".join(pairs if eta_s is None else [*pairs, f"eta={eta_s:.0f}s"])


def progress_text(
    step: int,
    steps: int,
    metrics: Mapping[str, float],
    eta_s: float | None = None,
    *,
    width: int,
) -> str:
    """Training progress for a terminal: what fits into `width` columns, the important first."""
    pieces = {"step": f"{step}/{steps}", **_pieces(metrics)}
    if eta_s is not None:
        pieces["eta"] = f"eta {format_duration(eta_s)}"
    for name in _DROP_ORDER:
        if len("  ".join(pieces.values())) <= width:
            break
        pieces.pop(name, None)
    return "  ".join(pieces.values())[:width]


def _plain_number(value: float) -> str:
    # No exponents for large numbers, which are counts here.
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _pieces(metrics: Mapping[str, float]) -> dict[str, str]:
    formats: Sequence[tuple[str, str, str]] = (
        ("loss", "train/loss", "loss {:.3f}"),
        ("ppl", "train/ppl", "ppl {:.4g}"),
        ("bpb", "train/bpb", "bpb {:.3f}"),
        ("lr", "lr", "lr {:.2g}"),
        ("gnorm", "grad_norm", "gnorm {:.2g}"),
        ("step_s", "perf/step_s", "{:.3g} s/step"),
        ("mem", "mem/peak_gib", "{:.3g} GiB"),
    )
    pieces = {name: form.format(metrics[tag]) for name, tag, form in formats if tag in metrics}
    if "perf/tokens_per_s" in metrics:
        pieces["tok/s"] = format_count(metrics["perf/tokens_per_s"], "tok/s")
    if "perf/tflops_per_device" in metrics:
        share = f" ({metrics['perf/mfu']:.0%})" if "perf/mfu" in metrics else ""
        pieces["flops"] = format_count(metrics["perf/tflops_per_device"] * 1e12, "FLOP/s") + share
    return pieces


def _scale(number: float, base: int, units: Sequence[str]) -> tuple[str, str]:
    if not math.isfinite(number):
        return str(number), units[0]
    index = 0
    # Compared as written: 999.6 is `1 k`, not `1000`.
    while abs(float(_three_digits(number))) >= base and index < len(units) - 1:
        number, index = number / base, index + 1
    return _three_digits(number), units[index]


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"

"""`bitttt inspect`: what a model's files hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from bitttt_jax.errors import run_main
from bitttt_jax.runs.console_text import format_bytes, format_count, safe_text

if TYPE_CHECKING:
    from bitttt_jax.inference.describe import Description

_WIDEST_KEY = 40
_LONG = 100  # characters of a value that are shown


@dataclasses.dataclass(frozen=True)
class Flags:
    """Show what a model's files hold: format, configuration, tensors, tokenizer, metadata.

    Only headers are read, so that a model may be larger than this computer's memory.

    bitttt inspect runs/quickstart

    bitttt inspect model.gguf --no_tensors
    """

    model: Annotated[str, tyro.conf.Positional]
    """Run directory, packed folder, Hugging Face folder, or GGUF file."""
    tensors: bool = True
    """List the tensors; --no_tensors leaves them out."""
    format: Literal["text", "json"] = "text"
    """How to print the result."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt inspect", use_underscores=True)
    from bitttt_jax.inference.describe import describe

    description = describe(flags.model)
    if flags.format == "json":
        print(_json(description, flags.tensors))
    else:
        # A file's names and texts are anybody's.
        print(safe_text("\n".join(_lines(description, flags.tensors)), multiline=True))


def _json(description: Description, tensors: bool) -> str:
    content = dataclasses.asdict(description) | {
        "parameters": description.parameters,
        "ternary_parameters": description.ternary_parameters,
        "bytes": description.bytes,
        "bytes_by_type": _by_type(description),
    }
    if not tensors:
        del content["tensors"]
    return json.dumps(content, indent=2, default=str)


def _lines(description: Description, tensors: bool) -> list[str]:
    share = description.ternary_parameters / max(description.parameters, 1)
    bits = 8 * description.bytes / max(description.parameters, 1)
    lines = [
        f"model        {description.path}: {description.format}",
        f"architecture {description.architecture}",
        f"parameters   {format_count(description.parameters)} ({description.parameters:,}), "
        f"{share:.1%} ternary",
        f"tensors      {len(description.tensors):,}, {format_bytes(description.bytes)}, "
        f"{bits:.2f} bits a parameter",
    ]
    for kind, size in _by_type(description).items():
        lines.append(f"  {kind:18} {format_bytes(size)}")
    lines += _section("tokenizer", description.tokenizer)
    lines += _section("configuration", description.config)
    lines += _section("metadata", description.metadata)
    if tensors:
        lines += ["", f"{'bytes':>14}  {'type':14} {'shape':20} tensor"]
        for tensor in description.tensors:
            shape = " x ".join(map(str, tensor.shape)) or "-"
            mark = "  (ternary)" if tensor.ternary else ""
            lines.append(f"{tensor.bytes:14,}  {tensor.type:14} {shape:20} {tensor.name}{mark}")
    return lines


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    width = min(max(map(len, values)), _WIDEST_KEY)
    return ["", title, *(f"  {key:{width}} {_short(value)}" for key, value in values.items())]


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text):,} characters)"


def _by_type(description: Description) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in description.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))

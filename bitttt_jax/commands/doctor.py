"""`bitttt doctor`: what is here, what works, and what to install."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Literal

import tyro

from bitttt_jax.errors import ExitCode, run_main
from bitttt_jax.runs.console_text import encodable, safe_text

_MARKS = {"ok": "✓", "note": "!", "problem": "✗"}
_ASCII_MARKS = {"ok": "ok", "note": "! ", "problem": "XX"}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Check this installation: versions, devices, kernels, extras, memory, disk and caches.

    Exit code 0 if everything works, also where it could be faster (`!`); 2 if something doesn't.

    bitttt doctor

    bitttt doctor --format=json
    """

    device: str = ""
    """Device to check: `cpu`, `gpu:0`, `tpu`; JAX's choice by default."""
    format: Literal["text", "json"] = "text"
    """How to print the result."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> ExitCode:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt doctor", use_underscores=True)
    from bitttt_jax.commands.checks import Finding, findings
    from bitttt_jax.distributed.devices import use_device

    use_device(flags.device)
    found: list[Finding] = []
    for finding in findings():
        found.append(finding)
        if flags.format == "text":
            _print(finding.status, f"{finding.name:16} {finding.text}", finding.fix)
    problems = sum(finding.status == "problem" for finding in found)
    if flags.format == "json":
        rows = [dataclasses.asdict(finding) for finding in found]
        print(json.dumps({"problems": problems, "findings": rows}, indent=2))
    else:
        notes = sum(finding.status == "note" for finding in found)
        print(f"{problems} problems, {notes} notes")
    return ExitCode.USAGE if problems else ExitCode.OK


def _print(status: str, text: str, fix: str) -> None:
    encoding = sys.stdout.encoding or "ascii"
    unicode = encoding.lower().replace("-", "").startswith("utf")
    mark = (_MARKS if unicode else _ASCII_MARKS)[status]
    lines = [f"{mark} {safe_text(text)}", *([f"{'':19}Try: {fix}"] if fix else [])]
    print(encodable("\n".join(lines), encoding), flush=True)

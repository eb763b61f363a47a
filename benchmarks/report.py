"""Writes the README's numbers from the records, so that it can't say anything else.

    python -m benchmarks.report

The section lies between two marks; a test compares it with what the records make.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure, report_parts
from benchmarks.records import read_record
from bitttt_jax.errors import ConfigError, run_main
from bitttt_jax.runs.files import write_atomically

BEGIN = "<!-- written by python -m benchmarks.report -->"
END = "<!-- up to here -->"
README = measure.ROOT / "README.md"
TITLES = ("train_step", "startup", "overhead", "packed", "smollm2", "serve")


def main(argv: Sequence[str]) -> int:
    """Writes the section; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    if argv:
        raise ConfigError(f"{argv[0]}: this takes no arguments")
    write_atomically(
        README, with_section(README.read_text(encoding="utf-8"), section(read_records()))
    )


def with_section(text: str, section: str) -> str:
    """A text with another section between its marks.

    Raises:
      ConfigError: it doesn't have both marks once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ConfigError(f"the text must have these marks, each once:\n{BEGIN}\n{END}")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.partition(END)[2]}"


def read_records() -> dict[str, Any]:
    """The records of one machine, by title."""
    return {title: read_record(measure.ROOT / report_parts.record_path(title)) for title in TITLES}


def section(records: Mapping[str, Any]) -> str:
    """The section's text."""
    train_step = records["train_step"]
    remarks = [
        *report_parts.train_step_remarks(train_step),
        report_parts.start_and_overhead(records["startup"], records["overhead"]),
    ]
    return "\n\n".join(
        [
            *report_parts.train_step(train_step),
            report_parts.bullets(remarks),
            *report_parts.packed(records["packed"]),
            *report_parts.smollm2(records["smollm2"]),
            report_parts.serve(records["serve"]),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`bitttt evaluate`: held-out loss, beside what general compressors make of the same bytes."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from bitttt_jax.config import DataConfig
    from bitttt_jax.training.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class Flags:
    """Measure a trained model on text: loss, perplexity, bits per byte, loss by position.

    bitttt evaluate --model=runs/quickstart

    bitttt evaluate --model=runs/quickstart --data=book.txt --seq_len=2048
    """

    model: str
    """Run directory; its newest checkpoint is used."""
    data: tuple[str, ...] = ()
    """Files or folders of text; by default the documents that the run held out."""
    seq_len: int = 0
    """Tokens that the model reads at once; 0 for those of the training."""
    batch_size: int = 0
    """Rows at once; 0 for those of the training."""
    step: int | None = None
    """Training step of the checkpoint; the newest one by default."""
    compressors: bool = True
    """Compress the same bytes with gzip -9 and xz -9e, to compare."""
    format: Literal["text", "json"] = "text"
    """How to print the result."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)

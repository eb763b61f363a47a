"""Loads a GGUF file once and lets it write: one line of JSON.

python -m benchmarks.load_case FILE bfloat16|int8 CONTEXT STEPS
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import psutil

from benchmarks import measure
from bitttt_jax.inference import speed
from bitttt_jax.interop import gguf_model


def main(argv: list[str]) -> None:
    """Prints seconds and bytes; those of memory are of the whole process, unless they grew."""
    path, kept, context, steps = argv
    weights: Any = kept
    jax.devices()  # what a process needs that loads nothing is in the memory before
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    model = gguf_model.load(Path(path), weights)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - start
    after, peak = psutil.Process().memory_info().rss, measure.peak_rss_mib() * 2**20
    step = speed.decode_seconds(model.config, model.params, int(context), 1, int(steps))
    found = {
        "load_s": seconds,
        "file_bytes": Path(path).stat().st_size,
        "grown_bytes": after - before,
        "resident_bytes": after,
        "peak_resident_bytes": round(peak),
        "step_s": dataclasses.asdict(step),
        "description": model.description,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

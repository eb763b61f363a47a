"""Runs atheris, a coverage-guided fuzzer, on the readers of Hugging Face files.

python -m tests.interop.run_fuzzer CORPUS -max_total_time=600 -rss_limit_mb=1000 -timeout=10
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bitttt_jax"]):
    from tests.interop import fuzz_huggingface


def main() -> None:
    """Fuzzes until the time is up or an input fails."""
    folder = Path(tempfile.mkdtemp())
    (folder / "a.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")  # for an index to name
    atheris.Setup(sys.argv, lambda data: fuzz_huggingface.one_input(data, folder))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

"""Fuzzes the reading of GGUF files, guided by coverage: any failure but a `DataError` is a bug.

    python -m pip install atheris
    python -m tests.interop.fuzz_gguf FOUND tests/interop/corpus/gguf -max_total_time=600

FOUND is a folder for what leads somewhere new. `test_gguf_corpus.py` reads a file for each of the
messages that came up, and mutations of its own, in every test run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bitttt_jax.errors import DataError


def read(data: bytes, path: Path) -> DataError | None:
    """Reads a file of some bytes.

    Args:
      data: the file's bytes.
      path: where to write them.

    Returns:
      The refusal; None where the file was read.
    """
    from bitttt_jax.interop import gguf_model

    path.write_bytes(data)
    try:
        gguf_model.load(path)
    except DataError as error:
        assert str(path) in error.what, "the message doesn't name the file"
        return error
    return None


def main() -> None:
    """Runs until something fails or the time is over."""
    import atheris

    with atheris.instrument_imports(include=["bitttt_jax.interop", "gguf.quants"]):
        from bitttt_jax.interop import gguf_model  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.gguf"

        def run(data: bytes) -> None:
            read(data, path)

        atheris.Setup(sys.argv, run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

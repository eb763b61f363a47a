"""Fuzzes the reading of GGUF files, guided by coverage: any failure but a `DataError` is a bug.

    python -m pip install atheris
    python tests/interop/fuzz_gguf.py corpus-folder seeds-folder -max_total_time=600 -max_len=8192

The folders may be empty; tests/interop/corpus/gguf is a good second one. `test_gguf_corpus.py` runs
what it found in every test run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bitttt_jax.errors import DataError

_FOLDER = Path(tempfile.gettempdir())


def read(data: bytes) -> None:
    """Reads a file of some bytes, as far as they go."""
    from bitttt_jax.interop import gguf_model

    path = _FOLDER / "fuzzed.gguf"
    path.write_bytes(data)
    try:
        gguf_model.load(path)
    except DataError as error:
        assert str(path) in str(error), "the message doesn't name the file"


def main() -> None:
    """Runs until something fails or the time is over."""
    import atheris

    global _FOLDER
    with atheris.instrument_imports(include=["bitttt_jax.interop", "gguf.quants"]):
        from bitttt_jax.interop import gguf_model  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        _FOLDER = Path(folder)
        atheris.Setup(sys.argv, read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

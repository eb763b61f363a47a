"""Running out of memory, explained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bitttt_jax.errors import BittttError, OutOfMemoryError
from bitttt_jax.runs.failures import classify


@contextlib.contextmanager
def out_of_memory(fix: str) -> Iterator[None]:
    """Explains it if the body runs out of memory.

    Args:
      fix: what to try.

    Raises:
      OutOfMemoryError: the device or the host had too little.
    """
    try:
        yield
    except BittttError:
        raise
    except Exception as error:
        known = classify(error)
        if not isinstance(known, OutOfMemoryError):
            raise
        raise OutOfMemoryError(known.what, known.why, fix) from error

"""Eight CPU devices and a compile cache of their own for all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# JAX reads these when it is first imported; processes that tests start inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parent.parent / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Tests compile much and compute little: this halves the time that compilation takes.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# A shell that starts the tests in the background lets them ignore Ctrl-C, and all they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Linux allows a process 65,530 of them; XLA aborts the process beyond.
_MANY_MAPPINGS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _few_mappings() -> Iterator[None]:
    """Forgets compiled functions when they are many: each has some mappings of memory."""
    yield
    import jax

    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > _MANY_MAPPINGS:
        jax.clear_caches()
        gc.collect()

"""Eight CPU devices and a compile cache of their own for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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

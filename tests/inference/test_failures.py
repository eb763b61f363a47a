from __future__ import annotations

import pytest

from bitttt_jax.errors import DataError, OutOfMemoryError
from bitttt_jax.inference.failures import out_of_memory


def test_running_out_of_memory_is_explained():
    with (
        pytest.raises(OutOfMemoryError, match=r"238 GiB(.|\n)*Try: less of it") as caught,
        out_of_memory("less of it"),
    ):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 256000032768 bytes.")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("error", [DataError("x"), RuntimeError("a bug"), BrokenPipeError()])
def test_other_failures_pass(error: Exception):
    with pytest.raises(type(error)) as caught, out_of_memory("less of it"):
        raise error
    assert caught.value is error

"""Taking turns: what process 0 must have done before the others look at its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bitttt_jax.errors import BittttError, ExitCode
from bitttt_jax.runs.failures import describe_failure

T = TypeVar("T")


class FirstProcessError(BittttError):
    """Process 0 failed while this one waited for it."""

    kind = "first_process"

    def __init__(self, exit_code: int):
        super().__init__("process 0 failed", fix="its output, which says why")
        if exit_code in set(ExitCode):
            self.exit_code = ExitCode(exit_code)


def first_process_first(action: Callable[[], T]) -> T:
    """Runs an action in process 0, and when it is done there in the others.

    Raises:
      FirstProcessError: in the others, if it failed in process 0, with the same exit code.
    """
    if jax.process_count() == 1:
        return action()
    failure: BaseException | None = None
    result: T | None = None
    is_first = jax.process_index() == 0
    if is_first:
        try:
            result = action()
        except BaseException as error:
            failure = error
    code = describe_failure(failure).exit_code if failure else 0
    code = int(multihost_utils.broadcast_one_to_all(np.int32(code)))
    if failure is not None:
        raise failure
    if code:
        raise FirstProcessError(code)
    return result if is_first else action()  # type: ignore[return-value]

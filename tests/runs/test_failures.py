"""Failures: which exit code, which words, which hints."""

import errno
import os

import jax
import jax.numpy as jnp
import pytest

from bitttt_jax.errors import (
    BittttError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    ExitCode,
    OutOfMemoryError,
)
from bitttt_jax.runs.failures import classify, describe_failure

OUT_OF_MEMORY = {
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.\n"
    "BufferAssignment OOM Debugging.\nBufferAssignment stats:": "no room for 4.44 GiB more",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.5GiB.": "no room for 12.5 GiB",
    "RESOURCE_EXHAUSTED: Failed to allocate request for 6.27GiB (6727663616B) on device ordinal 0":
        "no room for 6.27 GiB more",
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.93G of 15.48G hbm. Exceeded hbm capacity by 5.45G.":
        "the step needs 20.9 GiB, the device has 15.5 GiB",
    "RESOURCE_EXHAUSTED: TPU TensorCore Hbm usage: 34.82G, SparseCore Hbm usage 174.10G, "
    "exceeding available bytes: 95.74G": "the step needs 209 GiB, the device has 95.7 GiB",
    "RESOURCE_EXHAUSTED: Attempting to reserve 3.95G at the bottom of memory. That was not "
    "possible. There are 1.92G free, 0B reserved": "no room for 3.95 GiB more, 1.92 GiB are free",
    "INTERNAL: Error dispatching computation: Out of memory allocating 68719476736 bytes.":
        "no room for 64 GiB more",
    "RESOURCE_EXHAUSTED: something new": "the device ran out",
}  # fmt: skip


@pytest.mark.parametrize("text, expected", OUT_OF_MEMORY.items())
def test_device_out_of_memory_says_how_much(text, expected):
    failure = describe_failure(RuntimeError(text))
    assert failure.kind == "out_of_memory"
    assert failure.exit_code == ExitCode.OUT_OF_MEMORY == 3
    assert failure.title.startswith("out of device memory: ")
    assert expected in failure.title
    assert "\n" not in failure.detail
    assert text in failure.traceback
    # The cheapest cure first.
    keys = ["optim.accumulation", "model.remat=full", "mesh.fsdp"]
    assert [key for hint in failure.hints for key in keys if key in hint] == keys


def test_what_jax_really_raises_is_recognised():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jnp.zeros((1 << 42,), jnp.float32).block_until_ready()
    known = classify(error.value)
    assert isinstance(known, OutOfMemoryError)
    assert "no room for 16 TiB more" in known.what


def test_on_chip_memory_has_other_hints():
    failure = describe_failure(
        RuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20M of 16M vmem."
        )
    )
    assert "on-chip" in failure.title
    assert "model.ttt.mini_batch" in failure.hints[0]


def test_host_memory():
    assert describe_failure(MemoryError("Unable to allocate 512. TiB")).exit_code == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/x/metrics.jsonl"),
        # What tensorstore says, captured on a full tmpfs: not a lack of device memory.
        ValueError(
            'RESOURCE_EXHAUSTED: Error writing "a/0.0" in OCDBT database: Failed to write 152604 '
            "bytes to file 7: No space left on device [os_error_code='28']"
        ),
    ],
)
def test_full_disk_is_not_out_of_memory(error):
    failure = describe_failure(error)
    assert (failure.kind, failure.exit_code) == ("data", ExitCode.DATA)
    assert failure.title == "the disk is full"
    assert "keep_last" in failure.hints[0]


@pytest.mark.parametrize(
    "error, code",
    [
        (ConfigError("a", "b", "c"), 2),
        (DataError("a"), 5),
        (CheckpointError("a", fix="c"), 5),
        (DivergedError("a"), 4),
    ],
)
def test_own_errors_keep_their_words_and_have_no_traceback(error: BittttError, code):
    failure = describe_failure(error)
    assert classify(error) is error
    assert (failure.exit_code, failure.kind) == (code, error.kind)
    assert (failure.title, failure.detail) == (error.what, error.why)
    assert failure.hints == ((error.fix,) if error.fix else ())
    assert failure.traceback is None


def test_an_interrupt_is_neither_unexpected_nor_a_traceback():
    failure = describe_failure(KeyboardInterrupt())
    assert (failure.kind, failure.exit_code) == ("interrupted", ExitCode.INTERRUPTED)
    assert failure.traceback is None


def test_unforeseen_exceptions_keep_their_traceback():
    def inner():
        raise KeyError("no such\nthing")

    try:
        inner()
    except KeyError as error:
        failure = describe_failure(error)
    assert classify(KeyError("x")) is None
    assert (failure.kind, failure.exit_code) == ("unexpected", 1)
    assert failure.title.startswith("unexpected KeyError: ")
    assert "\n" not in failure.title
    assert "in inner" in failure.traceback
    assert describe_failure(ValueError()).title == "unexpected ValueError"

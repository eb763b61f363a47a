"""The kernels and a sharded train step, compiled for TPUs by libtpu; nothing is run."""

from __future__ import annotations

import re
from importlib import metadata

import pytest

from benchmarks import compiled
from benchmarks.compile_tpu_cases import CASES, CONTROLS, KERNELS

pytestmark = pytest.mark.tpu
TARGETS = pytest.mark.parametrize("target", compiled.COMPILERS["tpu"].targets)

REASONS = {
    "int8_subtraction": r"Only vector<i16> and vector<i32> are supported, but got .*i8",
    "uint8_shift": r"failed to legalize operation 'arith.shrui'",
    "too_large_blocks": r"exceed|RESOURCE_EXHAUSTED",
    "kernel_left_to_the_partitioner": r"Mosaic kernels cannot be automatically partitioned",
}


@TARGETS
@pytest.mark.parametrize("name", CASES)
def test_it_compiles_to_no_more_code_than_recorded(name, target):
    before = compiled.recorded("tpu", target, name) or {}
    if "refused" in before:
        with pytest.raises(compiled.CompileFailed, match=before["refused"]):
            compiled.compile_case("tpu", target, name)
        return
    found = compiled.compile_case("tpu", target, name)
    assert found["argument_bytes"] > 0
    if name in KERNELS:
        assert found["bundles"] > 100 and found["matrix_slots"] > 0
    assert compiled.growth("tpu", found, before) == []


@pytest.mark.parametrize("target", ["v5e", "tpu7x"])
@pytest.mark.parametrize("name", CONTROLS)
def test_the_compiler_refuses_what_the_chip_cannot_do(name, target):
    if name == "uint8_shift" and not metadata.version("libtpu").startswith("0.0.42"):
        assert compiled.compile_case("tpu", target, name)["argument_bytes"] > 0  # learned since
        return
    with pytest.raises(compiled.CompileFailed) as caught:
        compiled.compile_case("tpu", target, name)
    assert re.search(REASONS[name], str(caught.value))

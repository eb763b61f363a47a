"""The kernels, compiled for GPUs by JAX's CUDA plugin and ptxas; nothing is run."""

from __future__ import annotations

import pytest

from benchmarks import compiled
from benchmarks.compile_gpu_cases import CASES, CONTROLS

pytestmark = pytest.mark.gpu
TARGETS = pytest.mark.parametrize("target", compiled.COMPILERS["gpu"].targets)
INSTRUCTIONS = {"sm_90": "wgmma.mma_async", "sm_80": "mma.m16n8k32"}


@TARGETS
@pytest.mark.parametrize("name", CASES)
def test_it_compiles_to_no_more_registers_and_spills_than_recorded(name, target):
    found = compiled.compile_case("gpu", target, name)
    assert 0 < found["registers"] <= 255
    assert any(product.startswith(INSTRUCTIONS[target]) for product in found["products"])
    before = compiled.recorded("gpu", target, name) or {}
    assert compiled.growth("gpu", found, before) == []


@TARGETS
@pytest.mark.parametrize("name", CONTROLS)
def test_the_compiler_refuses_what_the_chip_cannot_do(name, target):
    with pytest.raises(compiled.CompileFailed, match="Shared memory size limit exceeded"):
        compiled.compile_case("gpu", target, name)

"""Records of compiled code; tests/compile compiles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compiled, measure


def test_more_code_than_recorded_is_found():
    before = {"bundles": 1000, "spills": 0}
    assert compiled.growth("tpu", {"bundles": 1020, "spills": 9}, before) == []
    assert compiled.growth("tpu", {"bundles": 900}, before) == []
    assert compiled.growth("tpu", {"bundles": 1021}, before) == ["bundles: 1021, recorded 1000"]
    spilled = {"registers": 96, "spill_bytes": 8}
    assert compiled.growth("gpu", spilled, {"registers": 96, "spill_bytes": 0})


@pytest.mark.parametrize("kind", compiled.COMPILERS)
def test_records_hold_every_case_of_both_versions(kind):
    by_version = compiled.read_record(compiled.record_path(kind))["of"]
    assert {name.split(",")[0] for name in by_version} >= {"jax 0.10.2", "jax 0.12.0.1"}
    for record in by_version.values():
        assert tuple(record["compiled_for"]) == compiled.COMPILERS[kind].targets
        for found in record["compiled_for"].values():
            assert tuple(found) == compiled.cases(kind)


def test_a_compiler_that_crashes_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    (tmp_path / "crashes.py").write_text("import os, sys; sys.stderr.write('why'); os.abort()")
    crashing = compiled.Compiler("crashes", ("chip",), (), ())
    monkeypatch.setitem(compiled.COMPILERS, "crashing", crashing)
    with pytest.raises(compiled.CompileFailed, match="case for chip ended with -6: why"):
        compiled.compile_case("crashing", "chip", "case")


def test_no_toolkit_is_a_message(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.compile_gpu", "sm_90", "packed_decode"]
    env = {"PATH": str(tmp_path), "PYTHONPATH": str(measure.ROOT)}
    done = subprocess.run(command, env=env, cwd=measure.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA toolkit")

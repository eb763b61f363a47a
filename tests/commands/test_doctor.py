from __future__ import annotations

import configparser
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from bitttt_jax import native
from bitttt_jax.commands import checks
from bitttt_jax.commands.doctor import main
from bitttt_jax.errors import ExitCode
from bitttt_jax.ternary import matmul

Captured = pytest.CaptureFixture[str]


def test_what_works_is_listed(capsys: Captured):
    assert main([]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    found = {line[2:19].strip() for line in lines if line[0] in "✓!"}
    assert {"python", "packages", "devices", "native", "memory", "disk", "compile cache"} <= found
    assert "kernel xla" in found
    assert ("kernel cpu" in found) == (native.instruction_set() is not None)
    assert lines[-1].startswith("0 problems, ")


def test_json(capsys: Captured):
    assert main(["--format=json"]) == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in result["findings"]}
    assert result["problems"] == 0
    assert findings["devices"]["figures"]["devices"][0]["name"] == "cpu:0"
    assert findings["disk"]["figures"]["free"] > 0
    assert 0 <= findings["kernel xla"]["figures"]["difference"] < 1e-5


def test_a_kernel_that_multiplies_wrongly(capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    """A wrong product is a problem, an exception too, and neither hides what comes after."""
    right = matmul._KERNELS["xla"]
    wrong = lambda x, weights: tuple(1.1 * y for y in right.matmul(x, weights))
    monkeypatch.setitem(matmul._KERNELS, "xla", right._replace(matmul=wrong))
    assert main([]) == ExitCode.USAGE
    out = capsys.readouterr().out
    assert "✗ kernel xla" in out and "answers of packed models are wrong here" in out
    assert "\n1 problems, " in out and "compile cache" in out

    def fails(x: jnp.ndarray, weights: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(matmul._KERNELS, "xla", right._replace(matmul=fails))
    assert main([]) == ExitCode.USAGE
    assert "RuntimeError: no such instruction" in capsys.readouterr().out


def test_a_full_disk_is_a_problem(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    usage = checks.shutil._ntuple_diskusage  # type: ignore[attr-defined]
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1, 1))
    assert main([]) == ExitCode.USAGE
    assert "1 B free" in capsys.readouterr().out


def test_missing_kernels_and_extras_say_what_to_install(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native, "instruction_set", lambda: None)
    monkeypatch.setattr(checks, "EXTRAS", {"hf": "no_such_module"})
    assert main([]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "C++ compiler" in out and "pip install 'bitttt-jax[hf]'" in out and "2 notes" in out


def test_extras_are_those_of_the_package():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parent.parent.parent / "setup.cfg")
    assert set(checks.EXTRAS) <= set(config["options.extras_require"])


def test_a_device_that_is_not_there(capsys: Captured):
    assert main(["--device=gpus"]) == ExitCode.USAGE
    assert "--device=gpus names no device" in capsys.readouterr().err


def test_an_ascii_terminal_and_a_quick_help():
    script = "from bitttt_jax.commands.doctor import main; import sys; sys.exit(main(sys.argv[1:]))"
    start = [sys.executable, "-X", "importtime", "-c", script, "--help"]
    env = {"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(start, capture_output=True, text=True, env=env, check=False)
    assert found.returncode == 0 and " jax\n" not in found.stderr
    start = [sys.executable, "-c", script]
    found = subprocess.run(start, capture_output=True, text=True, env=env, check=False)
    assert found.returncode == 0 and found.stdout.startswith("ok python")

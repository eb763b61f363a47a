"""The Makefile's choice of Python and its environment, with stand-ins for the interpreters."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SOURCE = "bitttt_jax/native/src/ttt_linear.cc"

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make isn't installed")

# Understands what the Makefile asks of an interpreter and writes down what it installs and runs.
PYTHON = """#!/bin/bash
case "$*" in
  --version) echo "Python {version}" ;;
  "-c import pip") [[ $0 == *.venv*/bin/python ]] && ! [[ -e broken ]] ;;
  "-c import ensurepip"*) exit {status} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv {version}" >>log ;;
  *pytest*) echo "pytest ${{*: -2}}" >>log ;;
  *install*) echo "install ${{*: -1}}" >>log; ! [[ -e offline ]] ;;
  *) echo "unexpected: $*" >>log ;;
esac
"""


class Machine:
    """A repository with a Makefile, and a PATH with interpreters."""

    def __init__(self, folder: Path):
        self.repository, self.bin = folder / "repository", folder / "bin"
        self.repository.mkdir()
        self.bin.mkdir()
        (self.repository / SOURCE).parent.mkdir(parents=True)
        for name in ("Makefile", "setup.cfg", "setup.py", "pyproject.toml", SOURCE):
            shutil.copy(ROOT / name, self.repository / name)
        for tool in ("bash", "make", "rm", "mkdir", "cp", "touch", "cat"):
            found = shutil.which(tool)
            assert found
            (self.bin / tool).symlink_to(found)

    def add_python(self, name: str, version: str, status: int = 0) -> None:
        path = self.bin / name
        path.write_text(PYTHON.format(version=version, status=status))
        path.chmod(0o755)

    def make(self, *args: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if "MAKE" not in name}
        environ |= {"PATH": str(self.bin)}
        environ.pop("PYTHON", None)
        return subprocess.run(
            ["make", "-C", str(self.repository), *args],
            env=environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def log(self) -> list[str]:
        path = self.repository / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.add_python("python3", "3.11.2")
    return machine


INSTALL = ["install pip", "install .[dev]"]


def test_environment_is_made_once(machine: Machine):
    machine.make("test").check_returncode()
    assert machine.log() == ["venv 3.11.2", *INSTALL, "pytest --dist loadfile"]
    machine.make("test").check_returncode()
    assert machine.log() == ["pytest --dist loadfile"]
    machine.make("test-all").check_returncode()
    assert machine.log() == ["pytest -m not tpu and not gpu and not models"]


@pytest.mark.parametrize(("kind", "extras"), [("tpu", "dev,tpu"), ("gpu", "dev,compile-gpu")])
def test_compilers_for_other_hardware_have_an_environment_of_their_own(
    machine: Machine, kind: str, extras: str
):
    machine.make(f"test-{kind}").check_returncode()
    install = ["install pip", f"install .[{extras}]"]
    assert machine.log() == ["venv 3.11.2", *install, f"pytest {kind} tests/compile"]
    assert (machine.repository / f".venv-{kind}" / "bin" / "python").exists()
    assert not (machine.repository / ".venv").exists()
    machine.make(f"test-{kind}").check_returncode()
    assert machine.log() == [f"pytest {kind} tests/compile"]


def test_other_programs_have_an_environment_of_their_own(machine: Machine):
    machine.make("test-models").check_returncode()
    install = ["install pip", "install .[dev,models]"]
    assert machine.log() == ["venv 3.11.2", *install, "pytest -m models"]
    assert not (machine.repository / ".venv").exists()


def test_newest_working_python_is_chosen(machine: Machine):
    machine.add_python("python3.14", "3.14.0", status=127)  # a shim, or without ensurepip
    machine.add_python("python3.12", "3.12.1")
    machine.add_python("python3.11", "3.11.7")
    assert "making .venv with Python 3.12.1" in machine.make("setup").stdout
    assert machine.log()[0] == "venv 3.12.1"


def test_no_python_is_one_line(machine: Machine):
    machine.add_python("python3", "3.9.1", status=1)
    done = machine.make("test")
    assert done.returncode == 2
    message = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(message) == 1
    assert "is Python 3.11 or newer" in message[0]
    assert machine.log() == []


def test_python_of_ones_choice_replaces_the_environment(machine: Machine):
    machine.add_python("python3.12", "3.12.1")
    machine.add_python("mine", "3.13.5")
    machine.make("setup").check_returncode()
    assert machine.log()[0] == "venv 3.12.1"
    machine.make("setup", "PYTHON=mine").check_returncode()
    assert machine.log() == ["venv 3.13.5", *INSTALL]
    machine.make("setup", "PYTHON=mine").check_returncode()
    machine.make("setup").check_returncode()
    assert machine.log() == []


@pytest.mark.parametrize("name", ["setup.cfg", "setup.py", "pyproject.toml", SOURCE])
def test_changed_metadata_installs_again(machine: Machine, name: str):
    machine.make("setup").check_returncode()
    machine.log()
    later = time.time() + 60
    os.utime(machine.repository / name, (later, later))
    machine.make("setup").check_returncode()
    assert machine.log() == INSTALL


def test_interrupted_installation_is_taken_up_again(machine: Machine):
    (machine.repository / "offline").touch()
    assert machine.make("test").returncode
    assert machine.log() == ["venv 3.11.2", "install pip"]
    (machine.repository / "offline").unlink()
    machine.make("test").check_returncode()
    assert machine.log() == [*INSTALL, "pytest --dist loadfile"]


def test_broken_environment_is_made_again(machine: Machine):
    machine.make("setup").check_returncode()
    machine.log()
    (machine.repository / ".venv" / "bin" / "python").unlink()
    machine.make("setup").check_returncode()
    assert machine.log() == ["venv 3.11.2", *INSTALL]


def test_ci_runs_make_test(machine: Machine):
    ci = machine.repository / ".ci"
    shutil.copytree(ROOT / ".ci", ci)
    for tool in ("dirname", "env"):
        (machine.bin / tool).symlink_to(shutil.which(tool) or "")
    subprocess.run([ci / "run"], env={"PATH": str(machine.bin)}, check=True, capture_output=True)
    assert machine.log()[-1].startswith("pytest")

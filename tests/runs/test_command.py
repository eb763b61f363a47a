"""command.txt: enough to start again, and no secrets."""

import os
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

import bitttt_jax
from bitttt_jax.runs.command import command_text


def facts(text):
    return dict(line.split(" = ", 1) for line in text.splitlines()[1:])


def test_command_can_be_pasted_and_names_what_it_ran_on(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--some_flag")
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    text = command_text(["python", "-m", "bitttt_jax.train", "--config.name=a b"])
    assert text.startswith("$ python -m bitttt_jax.train '--config.name=a b'\n")
    known = facts(text)
    assert known["cwd"] == os.getcwd()
    assert known["jax"] == jax.__version__
    assert known["XLA_FLAGS"] == "--some_flag"
    assert "hunter2" not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="git isn't installed")
def test_a_checkout_names_its_revision(tmp_path, monkeypatch):
    package = Path(shutil.copytree(Path(bitttt_jax.__file__).parent, tmp_path / "bitttt_jax"))
    monkeypatch.setattr(bitttt_jax, "__file__", str(package / "__init__.py"))
    assert facts(command_text(["x"]))["bitttt_jax"] == bitttt_jax.__version__
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    assert "(git " in facts(command_text(["x"]))["bitttt_jax"]
    (package / "__init__.py").write_text("")
    assert facts(command_text(["x"]))["bitttt_jax"].endswith("-dirty)")

"""What a release is made of: the source archive, and what the container images are built from."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = ("bitttt_jax", "configs", "docs", "docker", "release", "tests")


def tracked(*folders: str) -> list[str]:
    done = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", *folders], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def setup(folder: Path, *command: str) -> str:
    pytest.importorskip("setuptools", "77")
    done = subprocess.run(
        [sys.executable, "setup.py", *command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_archive_is_complete(tmp_path: Path):
    setup(
        ROOT, "-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)
    )  # fmt: skip
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert set(tracked(*NEEDED)) <= held
    assert {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "pyproject.toml",
        "setup.py",
    } <= held
    assert not any(name.endswith((".so", ".pyc")) for name in held)


def test_images_are_built_from_enough(tmp_path: Path):
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for name in tracked(*kept):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    version = setup(tmp_path, "-q", "--version").split()[-1]
    setup(tmp_path, "-q", "build_py", "--build-lib", "built")
    built = {path.relative_to(tmp_path / "built") for path in (tmp_path / "built").rglob("*.py")}
    expected = {Path(name) for name in tracked("bitttt_jax") if name.endswith(".py")}
    assert expected <= built
    assert Path("bitttt_jax/configs/debug.py") in built
    assert f'"{version}"' in (ROOT / "bitttt_jax" / "__init__.py").read_text()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_images_run_what_exists_and_as_nobody_special(kind: str):
    text = (ROOT / "docker" / f"{kind}.Dockerfile").read_text()
    assert "\nUSER 1000\n" in text and "\nVOLUME /runs\n" in text and "\nHEALTHCHECK " in text
    extras = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2]
    named = text.partition("${wheel}[")[2].partition("]")[0].split(",")
    assert {f"\n{extra} =\n" in extras for extra in named} == {True}

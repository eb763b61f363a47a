"""The JSON files that measurements are kept in, written whole after every step."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.files import write_atomically


def open_record(
    path: Path,
    title: str,
    observed: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    force: bool,
) -> dict[str, Any]:
    """Reads a record to add to, or begins one.

    Args:
      path: the file; needn't be there.
      title: which measurement it is of.
      observed: what `measure.observe` returned.
      settings: JSON values that all numbers of the record share.
      force: begin anew.

    Raises:
      ConfigError: the file holds numbers of another machine, of other versions or with other
        settings, or isn't a record.
    """
    header = {
        "title": title,
        "command": shlex.join(["python", "-m", _module(), *portable(sys.argv[1:])]),
        "date": measure.now(),
        "revision": measure.revision(),
        **{key: observed[key] for key in ("machine", "versions", "environment")},
        **settings,
    }
    header = json.loads(json.dumps(header))  # as it is read back: tuples become lists
    if force or not path.exists():
        return header
    record = read_record(path)
    changed = [k for k in ("machine", "versions", *settings) if record.get(k) != header[k]]
    if changed:
        raise ConfigError(
            f"{path} holds numbers of another {' and other '.join(changed)}",
            "\n  ".join(f"{key}: {record.get(key)}, and now {header[key]}" for key in changed),
            "--output=ANOTHER_FILE, or --force to begin anew",
        )
    return record | header


def read_record(path: Path) -> dict[str, Any]:
    """Reads a record.

    Raises:
      ConfigError: there is none.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as a record", str(error)) from None
    if not isinstance(record, dict) or "title" not in record:
        raise ConfigError(f"{path} is no record of a measurement")
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record, whole or not at all; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def portable(args: Sequence[str]) -> list[str]:
    """Arguments without the folders of absolute paths, which say nothing on another machine.

    >>> portable(["--text=/home/me/a.txt", "--only=b*,c"])
    ['--text=a.txt', '--only=b*,c']
    """
    return [re.sub(r"(^|[=,])/(?:[^/,]+/)*", r"\1", arg) for arg in args]


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem

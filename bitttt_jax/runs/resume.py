"""Whether a start goes on with the run in its folder, begins a new one, or is refused.

Going on by default is what a preempted job needs; going on by mistake ruins a run. So what makes
it the same run must be equal, and the rest may change.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bitttt_jax.config_loading import from_json, to_json
from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.directory import RUN_ENTRIES, RunDirectory

ResumeMode = Literal["auto", "never", "force"]

_IDENTITY = ("model", "data", "seed", "optim.name")
# How the same function is computed, not which one: the cures for lack of memory must be allowed.
_FREE = ("model.remat", "model.scan_unroll", "model.ttt.remat_group", "model.ttt.implementation")
_ABSENT = "(absent)"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A configuration key with two values."""

    key: str
    in_run: Any
    asked: Any


@dataclasses.dataclass(frozen=True)
class ResumePlan:
    """How the run starts."""

    step: int | None = None
    """The checkpoint to go on from; None for a new run."""
    changed: tuple[Difference, ...] = ()
    """What is configured differently from the run's last start."""
    moved_to: Path | None = None
    """Where the files of an earlier run went."""


def prepare(run: RunDirectory, config_json: str, mode: ResumeMode) -> ResumePlan:
    """Decides how to start, and makes the folder ready for it.

    Goes on from the newest complete checkpoint if there is one (metrics of later steps are
    dropped, they will be written again). Without a checkpoint nothing can be mixed up: the same
    configuration starts over, another one moves the files of the failed attempt aside.

    Args:
      run: the opened folder. Only its writer changes anything; call it there first.
      config_json: the configuration asked for.
      mode: `auto` refuses to go on with another run's files, `force` goes on with them, `never`
        moves them into `old-<n>/` and starts anew.

    Returns:
      What was decided.

    Raises:
      ConfigError: with `auto`, the folder holds checkpoints of another run.
    """
    written = run.read_config()
    old = _with_new_keys(written) if written else None
    steps = run.checkpoint_steps()
    changed = tuple(compare(old, config_json)) if old else ()
    moved_to = None
    if mode == "never" or (not steps and identity_changes(changed)):
        moved_to = _move_aside(run) if run.writer else None
        steps, changed = [], ()
    elif steps and old and mode == "auto":
        check_identity(old, config_json, run.path)
    run.start()
    step = steps[-1] if steps else None
    run.truncate_metrics(-1 if step is None else step)
    run.write_config(config_json)
    if step is not None:
        run.event("resume", step=step, forced=bool(identity_changes(changed)))
    if changed:
        run.event("config", changed=[dataclasses.asdict(difference) for difference in changed])
    return ResumePlan(step, changed, moved_to)


def check_identity(old_config_json: str, new_config_json: str, path: Path) -> None:
    """Refuses to go on with a run of another model, other data, another seed or optimizer.

    Args:
      old_config_json: config.json of the run.
      new_config_json: the configuration asked for.
      path: the run's folder, for the message.

    Raises:
      ConfigError: with the keys that differ and the ways out.
    """
    differences = identity_changes(compare(old_config_json, new_config_json))
    if differences:
        raise ConfigError(
            f"{path} holds another run",
            _table(differences),
            f"--workdir=ANOTHER_FOLDER for a new run beside it; --resume=force to go on with "
            f"these differences; --resume=never to move the files in {path} into old-<n>/ first",
        )


def compare(old_config_json: str, new_config_json: str) -> list[Difference]:
    """All keys with different values, as dotted paths in the order of the configuration."""
    old, new = (_flatten("", _parse(text)) for text in (old_config_json, new_config_json))
    return [
        Difference(key, old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in {**old, **new}
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]


def identity_changes(differences: tuple[Difference, ...] | list[Difference]) -> list[Difference]:
    """Those of the differences that make it another run."""

    def below(key: str, roots: tuple[str, ...]) -> bool:
        return any(key == root or key.startswith(root + ".") for root in roots)

    return [d for d in differences if below(d.key, _IDENTITY) and not below(d.key, _FREE)]


def _with_new_keys(config_json: str) -> str:
    """A configuration with the keys that have come since it was written, at their defaults.

    They say that nothing is done that wasn't done then. What isn't a configuration any more stays
    as it is, for its differences to be shown.
    """
    try:
        return to_json(from_json(config_json))
    except ConfigError:
        return config_json


def _parse(config_json: str) -> Any:
    try:
        return json.loads(config_json)
    except ValueError as error:
        raise ConfigError(
            "config.json of the run isn't valid JSON", str(error), "--resume=never, or repair it"
        ) from None


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    items: Mapping[str, Any]
    if isinstance(value, Mapping):
        items = value
    elif isinstance(value, list):
        items = {str(index): item for index, item in enumerate(value)}
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items.items():
        flat |= _flatten(f"{prefix}.{key}" if prefix else key, item)
    return flat


def _table(differences: list[Difference]) -> str:
    rows = [("key", "in the run", "asked for")]
    rows += [(d.key, _show(d.in_run), _show(d.asked)) for d in differences]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n  ".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows)


def _show(value: Any) -> str:
    return value if value == _ABSENT else json.dumps(value)


def _move_aside(run: RunDirectory) -> Path | None:
    names = [name for name in RUN_ENTRIES if (run.path / name).exists()]
    if not names:
        return None
    number = 1
    while (run.path / f"old-{number}").exists():
        number += 1
    target = run.path / f"old-{number}"
    target.mkdir()
    for name in names:
        shutil.move(run.path / name, target / name)
    return target

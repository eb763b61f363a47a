"""Starting, stopping, resuming and removing runs."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import apply_overrides, from_json, load_config, to_json
from bitttt_jax.runs.files import write_atomically
from bitttt_jax.runs.status import same_process
from bitttt_jax.studio import form
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.paths import check_name
from bitttt_jax.studio.processes import (
    Job,
    start_job,
    stop_job,
    stop_processes,
    tree,
)
from bitttt_jax.studio.run_store import RunFacts, RunStore

_DEVICE = re.compile(r"(cpu|gpu|tpu)(?::(\d{1,3}))?")


def device_flags(device: str) -> tuple[list[str], dict[str, str]]:
    """Flags and variables that make a run use a device.

    Args:
      device: `cpu`, `gpu`, `tpu`, `gpu:1` for one of several, or empty for JAX's choice.

    Raises:
      RequestError: it is none of these.
    """
    if not device:
        return [], {}
    found = _DEVICE.fullmatch(device)
    if not found or (found[2] and found[1] != "gpu"):
        raise RequestError(400, f"{device!r:.99} is no device", fix="cpu, gpu, gpu:0 or tpu")
    variables = {"CUDA_VISIBLE_DEVICES": found[2]} if found[2] else {}
    return [f"--platform={found[1]}"], variables


def start(runs: Path, jobs: Path, config: TrainConfig, name: str, device: str) -> Job:
    """Starts a new run.

    Args:
      runs: folder of the runs.
      jobs: folder of the jobs.
      config: what to train.
      name: of its folder.
      device: see `device_flags`.

    Raises:
      RequestError: 409, there is such a run; 400, the name or device can't be used.
    """
    folder = runs / check_name(name)
    flags, env = device_flags(device)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RequestError(
            409, f"there is a run {name!r} already", fix="another name, or resume that one"
        ) from None
    arguments = _arguments(config, folder)
    return _launch(jobs, folder, [*arguments, f"--workdir={folder}", *flags], env)


def resume(jobs: Path, facts: RunFacts, changes: Mapping[str, Any]) -> Job:
    """Starts a run again where it was; one without a checkpoint from its beginning.

    Args:
      jobs: folder of the jobs.
      facts: of the run.
      changes: values by dotted key to change first.

    Raises:
      RequestError: 409, it is running; 404, it has no configuration.
    """
    if facts.alive:
        raise RequestError(409, f"{facts.id} is running", fix="stop it first")
    path = facts.folder / "config.json"
    try:
        config = from_json(path.read_bytes())
    except OSError:
        raise RequestError(
            409, f"{facts.id} has no config.json", "it ended before it could write one"
        ) from None
    apply_overrides(config, form.overrides(changes))  # refused here rather than in the run
    before = facts.job.argv if facts.job else []
    flags = [flag for flag in before if flag.startswith("--platform=")]
    arguments = ["train", f"--config={path}", f"--workdir={facts.folder}", *flags]
    return _launch(jobs, facts.folder, [*arguments, *form.overrides(changes)], {})


def stop(store: RunStore, facts: RunFacts, force: bool) -> list[int]:
    """Asks a run to save and end, or ends it.

    Args:
      store: where it was found.
      facts: of the run.
      force: kill what doesn't end within five seconds, with all that it has started.

    Returns:
      Processes that couldn't be ended.

    Raises:
      RequestError: 409, it isn't running, or not here.
    """
    if facts.alive is None:
        raise RequestError(409, f"{facts.id} runs on {facts.status and facts.status.host}")
    own = facts.status and same_process(facts.status.pid, facts.status.create_time)
    is_job = facts.job and facts.job_state and facts.job_state.state == "running"
    if not own and not is_job:
        raise RequestError(409, f"{facts.id} isn't running")
    if force:
        store.note_forced(facts)
    left: list[int] = []
    if facts.job and is_job:
        left = stop_job(facts.job, force)
    if own and own.is_running() and not (is_job and _belongs(own, facts)):
        # Started in a terminal, whose other processes are none of ours.
        left += stop_processes(tree(own) if force else [own], force)
    return left


def _belongs(process: psutil.Process, facts: RunFacts) -> bool:
    try:
        return facts.job is not None and os.getsid(process.pid) == facts.job.pid
    except OSError:
        return True


def delete(home: Path, facts: RunFacts) -> Path:
    """Moves a run's folder into the studio's trash.

    Args:
      home: folder of the studio's own things.
      facts: of the run.

    Returns:
      Where it is now.

    Raises:
      RequestError: 409, it is running.
    """
    if facts.alive is not False or (facts.job_state and facts.job_state.state == "running"):
        raise RequestError(409, f"{facts.id} is running", fix="stop it first")
    trash = home / "trash"
    trash.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = trash / f"{facts.id.replace('/', '__')}-{stamp}-{os.urandom(2).hex()}"
    facts.folder.rename(target)
    return target


def clone(config: TrainConfig) -> dict[str, Any]:
    """The form's content that makes a configuration."""
    preset = form.nearest_preset(config)
    return {"preset": preset, "values": form.values_between(load_config(preset), config)}


def read_config(facts: RunFacts) -> TrainConfig | None:
    """A run's configuration; None if it has none, or one of another version."""
    try:
        return from_json((facts.folder / "config.json").read_bytes())
    except (OSError, ValueError, form.ConfigError):
        return None


def config_from(content: Mapping[str, Any]) -> TrainConfig:
    """The configuration of nested JSON values.

    Raises:
      ConfigError: with all that is wrong.
    """
    return from_json(json.dumps(content))


def _arguments(config: TrainConfig, folder: Path) -> list[str]:
    """The command for a configuration: by its preset, as people would write it."""
    preset = form.nearest_preset(config)
    arguments = form.command_arguments(preset, config)
    again = apply_overrides(load_config(preset), arguments[2:])
    if again == config:
        return arguments
    path = folder / "asked.json"  # something that flags can't say
    write_atomically(path, to_json(config))
    return ["train", f"--config={path}"]


def _launch(jobs: Path, folder: Path, arguments: list[str], env: dict[str, str]) -> Job:
    return start_job(
        jobs,
        "train",
        folder.name,
        arguments,
        log=folder / "train.log",
        env=env,
        subject=str(folder.absolute()),
    )

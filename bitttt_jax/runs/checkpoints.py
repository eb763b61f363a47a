"""Checkpoints: asynchronous saves, what is kept, and restores that say what doesn't fit.

The only module that knows orbax. Orbax writes under a temporary name and renames what is
complete; it casts dtypes silently and words mismatches for its own developers, so trees are
compared here first.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from bitttt_jax.config import CheckpointConfig
from bitttt_jax.errors import BittttError, CheckpointError
from bitttt_jax.runs.directory import is_complete, saved_steps
from bitttt_jax.runs.failures import classify
from bitttt_jax.runs.trees import PyTree, abstract_array, differences

LAYOUT = 1
"""Version of what a checkpoint holds and how it is named; newer ones are refused."""
BEST_METRIC = "eval/loss"
"""The metric whose lowest values make a checkpoint one of the best."""

_STATE = "state"
# In several processes a look at the clock waits for the devices, so it is taken now and then.
_STEPS_BETWEEN_LOOKS = 10
_SHOWN_DIFFERENCES = 6
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")


class Saved(NamedTuple):
    """A checkpoint that is complete on disk."""

    step: int
    path: Path
    size: int
    """Bytes on disk."""
    seconds: float
    """From the start of the save to its last byte."""


class Checkpoints:
    """The checkpoints of a run, one folder a step. All processes call the same methods.

    Args:
      folder: where they are.
      config: when to save and what to keep; None only reads, and leaves the folder as it is.
      metadata: JSON values stored beside every state, such as a hash of the configuration.
      agree: given this process's opinion on whether it is time to save, returns the opinion of
        process 0 on all processes; needed where several processes save by the clock, and then
        called at every tenth step.

    Raises:
      CheckpointError: nothing is to be read in `folder`.
      ValueError: `agree` is missing.
    """

    def __init__(
        self,
        folder: Path | str,
        config: CheckpointConfig | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        agree: Callable[[bool], bool] | None = None,
    ):
        _quieten_orbax()
        self.folder = Path(folder).absolute()
        self._config = config
        self._metadata = {**(metadata or {}), "layout": LAYOUT}
        if config and config.every_minutes and jax.process_count() > 1 and agree is None:
            raise ValueError("checkpoint.every_minutes needs `agree` in several processes")
        self._agree = agree or (lambda opinion: opinion)
        if config is None and not saved_steps(self.folder):
            raise CheckpointError(
                f"there is no complete checkpoint in {self.folder}",
                fix="the folder of a run that has saved once",
            )
        if config is not None and jax.process_index() == 0:
            _set_aside_incomplete(self.folder)
        self._manager = _manager(self.folder, config)
        self._clock = time.monotonic()
        self._steps_between_looks = _STEPS_BETWEEN_LOOKS if jax.process_count() > 1 else 1
        self._answer = (-1, False)
        self._pending: int | None = None
        self._completed: list[Saved] = []

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what there is ---------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return saved_steps(self.folder)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The complete checkpoint with the lowest validation loss, None without one."""
        losses = {step: self.metrics(step).get(BEST_METRIC) for step in self.steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return min(known, key=lambda step: (known[step], -step), default=None)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / str(step)

    def size(self, step: int) -> int:
        """Bytes of a step's checkpoint on disk."""
        return sum(file.stat().st_size for file in self.path(step).rglob("*") if file.is_file())

    def metrics(self, step: int) -> dict[str, float]:
        """Metrics that were saved with a step; empty if there were none."""
        return dict(self._manager.metrics(step) or {})

    def metadata(self, step: int) -> dict[str, Any]:
        """What was stored beside a step's state, `layout` included.

        Raises:
          CheckpointError: there is no such checkpoint, or another program wrote it.
        """
        if not is_complete(self.path(step)):
            have = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"there is no complete checkpoint {self.path(step)}", f"complete steps: {have}"
            )
        metadata = dict(self._manager.metadata(step).custom_metadata or {})
        layout = metadata.get("layout")
        if not isinstance(layout, int):
            raise CheckpointError(f"{self.path(step)} wasn't written by bitttt_jax")
        if layout > LAYOUT:
            raise CheckpointError(
                f"{self.path(step)} has layout {layout}, this version reads up to {LAYOUT}",
                fix="a newer bitttt_jax",
            )
        return metadata

    # --- saving ----------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether it is time to save; the same on all processes, and whenever asked for a step.

        Args:
          step: optimizer steps done.
        """
        if step != self._answer[0]:
            self._answer = step, self._is_time(step, self._writing())
        return self._answer[1]

    def _is_time(self, step: int, config: CheckpointConfig) -> bool:
        if config.every_steps and step % config.every_steps == 0:
            return True
        if not config.every_minutes or step % self._steps_between_looks:
            return False
        return self._agree(time.monotonic() - self._clock >= 60 * config.every_minutes)

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        metrics: Mapping[str, float] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts to save a state if it is due; returns once the arrays are copied.

        Args:
          step: optimizer steps done.
          state: pytree of arrays; they may be donated afterwards.
          metrics: results of a validation at this step; `eval/loss` ranks the checkpoint.
          force: save even if it isn't due.

        Returns:
          Whether a save was started: not if it isn't due, or if this step is saved already.

        Raises:
          CheckpointError: this save or the one before it failed; earlier ones are untouched.
        """
        if not (force or self.due(step)):
            return False
        self.wait()
        if step in self._manager.all_steps():
            return False
        self._clock = time.monotonic()
        self._pending = step
        finite = {tag: float(x) for tag, x in (metrics or {}).items() if math.isfinite(x)}
        with self._write_errors(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(**{_STATE: ocp.args.PyTreeSave(state)}),
                metrics=finite if BEST_METRIC in finite else None,
                force=True,
                custom_metadata=self._metadata,
            )
        return True

    def poll(self) -> list[Saved]:
        """Checkpoints completed since the last call; never waits.

        Raises:
          CheckpointError: a save failed; those before it are untouched.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()
        completed, self._completed = self._completed, []
        return completed

    def wait(self) -> None:
        """Waits until the running save is complete; `poll` reports it.

        Raises:
          CheckpointError: it failed; those before it are untouched.
        """
        step, self._pending = self._pending, None
        if step is None:
            return
        with self._write_errors(step):
            self._manager.wait_until_finished()
            if not is_complete(self.path(step)):  # orbax says nothing when a save is cancelled
                raise OSError("it was given up before all of it was on disk")
            times = self._manager.metadata(step)
        seconds = (times.commit_timestamp_nsecs - times.init_timestamp_nsecs) / 1e9
        self._completed.append(Saved(step, self.path(step), self.size(step), seconds))

    def close(self) -> None:
        """Waits for the running save and ends orbax's threads.

        Raises:
          CheckpointError: the save failed; those before it are untouched.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    # --- restoring -------------------------------------------------------------------------

    def restore(
        self, abstract_state: PyTree, step: int | None = None, *, partial: bool = False
    ) -> PyTree:
        """Reads a state onto the given devices, whatever mesh it was saved from.

        Args:
          abstract_state: pytree of `jax.ShapeDtypeStruct` (or arrays) like the saved one, with the
            shardings to restore to; leaves without a sharding go to the first local device.
          step: which checkpoint; by default the newest.
          partial: `abstract_state` is only a part of what was saved, such as
            `{"params": ...}` without the optimizer's state.

        Returns:
          The arrays in the structure of `abstract_state`.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its names, shapes or
            dtypes differ from those asked for; the message lists the first differences.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no complete checkpoint in {self.folder}")
        target = jax.tree.map(abstract_array, abstract_state)
        try:
            self.metadata(step)
            saved = self._manager.metadata(step).item_metadata[_STATE].tree
            self._check_fits(step, differences(saved, target, partial=partial))
            item = ocp.args.PyTreeRestore(
                target,
                restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                partial_restore=partial,
            )
            restored = self._manager.restore(step, args=ocp.args.Composite(**{_STATE: item}))
        except CheckpointError:
            raise
        except Exception as error:  # orbax wraps what it meets in bare Exceptions
            raise self._unreadable(step, error) from error
        return restored[_STATE]

    def _check_fits(self, step: int, different: list[str]) -> None:
        if not different:
            return
        more = len(different) - _SHOWN_DIFFERENCES
        shown = different[:_SHOWN_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
        raise CheckpointError(
            f"{self.path(step)} doesn't fit: {len(different)} arrays differ",
            "\n  ".join(shown),
            "the model and optimizer settings that the checkpoint was saved with",
        )

    def _unreadable(self, step: int, error: BaseException) -> BittttError:
        first = error
        while first.__cause__ is not None:
            first = first.__cause__
        known = classify(first)
        if known is not None:  # the device ran out of memory, not the checkpoint of bytes
            return known
        earlier = [other for other in self.steps() if other < step]
        fix = f"delete that folder to go on from step {earlier[-1]}" if earlier else ""
        return CheckpointError(f"{self.path(step)} is damaged", _reason(first), fix)

    def _writing(self) -> CheckpointConfig:
        if self._config is None:
            raise ValueError("these checkpoints were opened to read only")
        return self._config

    @contextlib.contextmanager
    def _write_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self._pending = None
            # The manager has already counted the new step and forgotten those it would replace.
            self._manager.reload()
            raise CheckpointError(
                f"{self.path(step)} couldn't be written",
                f"{_reason(error)}; earlier checkpoints are untouched",
                "free space or fix the permissions, then start the same command again",
            ) from error


@functools.cache
def _quieten_orbax() -> None:
    """Keeps orbax from printing: what matters in it comes back as exceptions.

    Besides its log there is an echo of failed reads: orbax closes its event loop at the first,
    and each of the others then fails to report to it, or is thrown away half-done. An interrupt
    can leave such a loop half-made, which then fails to close.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    print_unraisable = sys.unraisablehook

    def print_others(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        from_orbax = code is not None and "orbax" in code.co_filename
        from_loop = getattr(unraisable.object, "__module__", "") == "asyncio.base_events"
        if not (from_orbax or from_loop) and str(unraisable.exc_value) != "Event loop is closed":
            print_unraisable(unraisable)

    sys.unraisablehook = print_others


def _manager(folder: Path, config: CheckpointConfig | None) -> ocp.CheckpointManager:
    def loss(metrics: Any) -> float:
        return float(metrics[BEST_METRIC])

    policies: list[PreservationPolicy] = []
    if config is not None:
        policies = [
            LatestN(config.keep_last),
            BestN(
                get_metric_fn=loss,
                reverse=True,
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if config.keep_every_steps:
            policies.append(EveryNSteps(config.keep_every_steps))
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            create=config is not None,
            cleanup_tmp_directories=config is not None,
            read_only=config is None,
            best_fn=loss,
            best_mode="min",
            preservation_policy=AnyPreservationPolicy(policies),
        ),
        item_names=(_STATE,),
        item_handlers={_STATE: ocp.PyTreeCheckpointHandler()},
    )


def _set_aside_incomplete(folder: Path) -> None:
    """Renames what looks like a checkpoint but isn't one, so that orbax doesn't count it."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.isdecimal() and not is_complete(path):
            path.rename(path.with_name(f"{path.name}.incomplete-{time.time_ns()}"))


def _reason(error: BaseException) -> str:
    """The system's own words if tensorstore quotes them, else the beginning of the message."""
    if code := _SYSTEM_ERROR.search(str(error)):
        return os.strerror(int(code[1]))
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".removesuffix(": ")

"""TensorBoard for some runs, on a loopback port of its own.

It knows no passwords, so everybody on this host can read the curves that it shows, and nobody
elsewhere. It ends with the studio.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import Request
from starlette.routing import BaseRoute

from bitttt_jax.studio import loopback
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.logs import tail_lines
from bitttt_jax.studio.processes import Job, job_state, start_job, stop_job
from bitttt_jax.studio.routing import post

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

_MOST_RUNS = 100
_MOST_BOARDS = 4
_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class BoardRequest:
    """Which runs to show."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    runs: tuple[str, ...]


def link_runs(folder: Path, runs: Sequence[tuple[str, Path]]) -> Path:
    """Makes a folder in which TensorBoard finds some runs, and no others, under their names.

    Args:
      folder: where to make it.
      runs: ids, and folders of event files.

    Returns:
      The folder, the same for the same runs.
    """
    digest = hashlib.sha256("\n".join(sorted(id_ for id_, _ in runs)).encode()).hexdigest()
    place = folder / digest[:16]
    for id_, events in runs:
        link = place / id_
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(events, target_is_directory=True)
    return place


class Boards:
    """The TensorBoards of this studio; used from one event loop.

    Args:
      studio: whose runs they show.
    """

    def __init__(self, studio: Studio):
        self._studio = studio
        self._boards: dict[Path, tuple[Job, int]] = {}

    async def open(self, ids: Sequence[str]) -> int:
        """The port of a TensorBoard that shows some runs; starts one unless it runs already.

        Raises:
          RequestError: no such runs, or it doesn't start.
        """
        if not 0 < len(ids) <= _MOST_RUNS:
            raise RequestError(400, f"name 1 to {_MOST_RUNS} runs, not {len(ids)}")
        folder = await asyncio.to_thread(self._folder, ids)
        found = self._boards.get(folder)
        if found and await self._is_running(found[0]):
            return found[1]
        while len(self._boards) >= _MOST_BOARDS:
            job, _ = self._boards.pop(next(iter(self._boards)))
            await asyncio.to_thread(stop_job, job, True)
        port = loopback.free_port()
        flags = [f"--logdir={folder}", f"--host={loopback.HOST}", f"--port={port}"]
        job = start_job(
            self._studio.jobs,
            "tensorboard",
            f"TensorBoard: {', '.join(ids)}"[:200],
            [*flags, "--reload_multifile=true"],
            module="tensorboard.main",
            tied=True,
        )
        self._boards[folder] = (job, port)
        await self._wait(job, port)
        return port

    async def close_all(self) -> None:
        """Ends them."""
        for job, _ in self._boards.values():
            await asyncio.to_thread(stop_job, job, True)
        self._boards.clear()

    def _folder(self, ids: Sequence[str]) -> Path:
        runs = []
        for id_ in dict.fromkeys(ids):
            events = self._studio.run_store.facts(id_).folder.resolve() / "tb"
            if not events.is_dir():
                raise RequestError(
                    404,
                    f"{id_} has no TensorBoard events",
                    "it hasn't written any yet, or was started with log.tensorboard=False",
                )
            runs.append((id_, events))
        return link_runs(self._studio.home.resolve() / "tensorboard", runs)

    async def _is_running(self, job: Job) -> bool:
        return (await asyncio.to_thread(job_state, job)).state == "running"

    async def _wait(self, job: Job, port: int) -> None:
        end = time.monotonic() + _READY_SECONDS
        while not await loopback.is_listening(port):
            if not await self._is_running(job) or time.monotonic() > end:
                lines = tail_lines(job.log, 5)[0]
                raise RequestError(500, "TensorBoard doesn't start", "\n".join(lines))
            await asyncio.sleep(_LOOK_SECONDS)


def routes(studio: Studio) -> list[BaseRoute]:
    """`POST tensorboard`."""
    boards = Boards(studio)
    studio.on_shutdown.append(boards.close_all)

    async def show(request: Request, asked: BoardRequest) -> dict[str, Any]:
        if importlib.util.find_spec("tensorboard") is None:
            raise RequestError(
                409, "TensorBoard isn't installed", fix="pip install tensorboard, or bitttt watch"
            )
        port = await boards.open(asked.runs)
        return {"url": f"http://{loopback.HOST}:{port}/", "port": port}

    return [post("/tensorboard", show, BoardRequest)]

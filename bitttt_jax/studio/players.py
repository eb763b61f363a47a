"""Players: child servers that run a model each, for the playground.

A player is `bitttt serve` on a loopback port that only the studio has the key of. It ends with the
studio, when it is closed, or when nobody has asked it anything for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

from bitttt_jax.studio import loopback
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.loopback import Child, ChildError
from bitttt_jax.studio.models import Model
from bitttt_jax.studio.processes import Job, job_state, start_job, stop_job

MOST_PLAYERS = 4
IDLE_SECONDS = 30 * 60.0
"""A player that nobody has asked anything for so long is closed."""

_FRESH_SECONDS = 1.0
_SWEEP_SECONDS = 15.0


@dataclasses.dataclass
class Player:
    """A child server, and what is known of it."""

    id: str
    model: Model
    step: int | None
    """As asked for; None takes the newest one up as it comes."""
    device: str
    job: Job
    child: Child
    used: float
    """When somebody last asked it something."""
    requests: int = 0
    """Those that it is answering."""
    description: dict[str, Any] | None = None
    """What it says of its model; None until it is ready."""
    looked: float = -_FRESH_SECONDS
    """When it was last asked for that."""


class Players:
    """The players of this studio; used from one event loop.

    Args:
      jobs: folder of the jobs.
      clock: seconds from any start.
    """

    def __init__(self, jobs: Path, clock: Callable[[], float] = time.monotonic):
        self._jobs, self._clock = jobs, clock
        self._players: dict[str, Player] = {}
        self._starting = 0
        self._sweeper: asyncio.Task[None] | None = None

    def all(self) -> list[Player]:
        """The players, in the order in which they were started."""
        return list(self._players.values())

    def find(self, id_: str) -> Player:
        """The player with an id.

        Raises:
          RequestError: 404, it has been closed, or never was.
        """
        player = self._players.get(id_)
        if player is None:
            raise RequestError(
                404,
                f"there is no model {id_!r:.99} in the playground",
                "it was closed, or the studio was started anew",
                "choosing a model again",
            )
        return player

    async def start(self, model: Model, step: int | None, device: str) -> Player:
        """Starts a child server; `look` tells when it is ready.

        Raises:
          RequestError: 429, there are too many.
        """
        if len(self._players) + self._starting >= MOST_PLAYERS:
            raise RequestError(
                429,
                f"{MOST_PLAYERS} models are in the playground already",
                "each of them takes memory",
                "closing one of them",
            )
        self._starting += 1
        try:
            child = Child(loopback.free_port(), secrets.token_urlsafe(32))
            job = await asyncio.to_thread(
                start_job,
                self._jobs,
                "serve",
                f"playground: {model.name}",
                serve_command(model, step, device, child.port),
                # The key is no argument: command lines are shown to everybody on the host. The
                # rest is for a run's sake, which may be using the same accelerator.
                env={"BITTTT_API_KEY": child.key, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
                subject=model.path,
                tied=True,
            )
        finally:
            self._starting -= 1
        player = Player(secrets.token_hex(4), model, step, device, job, child, self._clock())
        self._players[player.id] = player
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())
        return player

    @contextlib.asynccontextmanager
    async def in_use(self, player: Player) -> AsyncIterator[Child]:
        """A player's child, which counts as used meanwhile.

        Raises:
          RequestError: 409, it has ended, or stops answering.
        """
        player.requests += 1
        try:
            yield player.child
        except ChildError as error:
            raise RequestError(
                409,
                f"the model {player.model.name} doesn't answer in the playground",
                str(error),
                "its card says why; choosing it again starts it anew",
            ) from None
        finally:
            player.requests -= 1
            player.used = self._clock()

    async def look(self, player: Player) -> Literal["loading", "ready", "failed"]:
        """Whether a player is ready, and what it says of its model, a second old at most."""
        if (await asyncio.to_thread(job_state, player.job)).state != "running":
            return "failed"
        if self._clock() - player.looked >= _FRESH_SECONDS:
            player.looked = self._clock()
            with contextlib.suppress(ChildError, TimeoutError):
                async with asyncio.timeout(_FRESH_SECONDS):
                    status, answer = await loopback.ask(player.child, "GET", "/bitttt/model")
                if status == 200 and isinstance(answer, dict):
                    player.description = answer
        return "loading" if player.description is None else "ready"

    async def close(self, player: Player) -> None:
        """Ends a player and all that it has started."""
        self._players.pop(player.id, None)
        await asyncio.to_thread(stop_job, player.job, True)

    async def close_all(self) -> None:
        """Ends all players."""
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None
        await asyncio.gather(*(self.close(player) for player in self.all()))

    async def close_idle(self) -> None:
        """Ends the players that nobody has asked anything for long."""
        for player in self.all():
            if not player.requests and self._clock() - player.used > IDLE_SECONDS:
                await self.close(player)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            await self.close_idle()


def serve_command(model: Model, step: int | None, device: str, port: int) -> list[str]:
    """The arguments of `bitttt` that run a model for the playground."""
    command = ["serve", f"--model={model.path}", f"--host={loopback.HOST}", f"--port={port}"]
    command += ["--playground", f"--device={device}"]
    if step is not None:
        return [*command, f"--step={step}"]
    return [*command, "--watch"] if model.kind == "run" else command

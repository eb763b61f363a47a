"""The thread that runs the engine, and what it does for the event loop."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import math
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bitttt_jax.server.failures import ApiError, explained

if TYPE_CHECKING:
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.model import Model

Job = Callable[["Engine"], Iterator[Sequence[Any]]]
"""Something to do with the engine, a bit at each turn: yields what there is to tell so far. The
engine steps between turns. Closed early, it leaves everything in order."""

# Events that may wait for a client; one that lets more come together has stopped reading.
MOST_WAITING = 1000
_LEAST_RETRY_S, _MOST_RETRY_S = 1, 60


class Ticket:
    """A job as the event loop sees it: an iterator of what the job tells, which it can end.

    Args:
      job: what to do.
      deadline: when it must be done, of `time.monotonic`.
    """

    def __init__(self, job: Job, deadline: float):
        self.job, self.deadline = job, deadline
        self.is_cancelled = False
        self.is_done = False
        """Whether the client hears no more of it."""
        self.is_left = False
        """Whether the engine's thread does nothing more for it."""
        self._events: collections.deque[Any] = collections.deque()
        self._error: BaseException | None = None
        self._news = asyncio.Event()

    def cancel(self) -> None:
        """Ends the job at its next turn; may be called at any time, also when it has ended."""
        self.is_cancelled = True

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._events:
            if self._error:
                raise self._error
            if self.is_done:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    def take(self, events: Sequence[Any], ended: bool, error: BaseException | None) -> None:
        """Takes what came; on the event loop."""
        if self.is_done:
            return
        self._events += events
        if len(self._events) > MOST_WAITING and not ended:
            self.cancel()
            ended, error = True, ApiError(408, "the client doesn't read what it asked for")
        self.is_done, self._error = ended, error
        self._news.set()


class Worker:
    """Loads a model and runs it, in a thread of its own.

    Args:
      load: returns the model; called in the thread.
      make_engine: the engine for it.
      most: jobs that are worked on or wait.
      timeout: seconds that each may take.
      slots: replies that are written together, from which the time is told to those turned away.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        make_engine: Callable[[Model], Engine],
        *,
        most: int,
        timeout: float,
        slots: int,
    ):
        self._load, self._make_engine = load, make_engine
        self._most, self._timeout, self._slots = most, timeout, slots
        self.engine: Engine | None = None
        """None until the model is loaded."""
        self.loaded_at = 0.0
        self.newest_step: int | None = None
        """Of the checkpoints, where newer ones are looked for."""
        self.failure: BaseException | None = None
        """Why there is no model."""
        self.on_model: list[Callable[[Engine], None]] = []
        """Told of the engine, in the thread, when a model was loaded."""
        self.on_failure: Callable[[], None] = lambda: None
        """Told, in the thread, that there will be no model."""
        self.is_stopping = False
        self._open: set[Ticket] = set()  # on the event loop
        self._seconds = 1.0  # that a job takes, of late
        self._new: collections.deque[Ticket] = collections.deque()
        self._running: dict[Ticket, Iterator[Sequence[Any]]] = {}
        self._offered: Model | None = None
        self._wake = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- from the event loop ------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load; on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def state(self) -> str:
        """`loading`, `ready`, `failed` or `stopping`."""
        if self.is_stopping:
            return "stopping"
        return "failed" if self.failure else "ready" if self.engine else "loading"

    @property
    def waiting(self) -> int:
        """Jobs that have come and aren't done."""
        return len(self._open)

    def ready_engine(self) -> Engine:
        """The engine.

        Raises:
          ApiError: it isn't there yet, or no more.
        """
        engine = self.engine
        if engine is None or self.state != "ready":
            raise ApiError(
                503,
                f"the model isn't there: the server is {self.state}",
                code=self.state,
                headers={"retry-after": "2"},
            )
        return engine

    def submit(self, job: Job) -> Ticket:
        """Takes a job.

        Raises:
          ApiError: there is no model yet, or there are too many jobs.
        """
        self.ready_engine()
        if len(self._open) >= self._most:
            raise ApiError(
                429,
                f"{len(self._open)} requests are being answered or wait",
                "the server takes no more at a time",
                code="queue_full",
                headers={"retry-after": str(self._seconds_until_free())},
            )
        ticket = Ticket(job, time.monotonic() + self._timeout)
        self._open.add(ticket)
        with self._wake:
            self._new.append(ticket)
            self._wake.notify()
        return ticket

    async def result(self, job: Job) -> Any:
        """Does a job that tells one thing, and returns that."""
        ticket = self.submit(job)
        try:
            return [event async for event in ticket][-1]
        finally:
            ticket.cancel()

    def stop(self) -> None:
        """Ends all jobs, and then the thread; on the event loop."""
        if self.is_stopping:
            return
        self.is_stopping = True
        error = ApiError(503, "the server is shutting down", code="stopping")
        for ticket in self._open:
            ticket.cancel()
            ticket.take((), True, error)
        with self._wake:
            self._wake.notify()

    def join(self, timeout: float) -> bool:
        """Waits for the thread's end; returns whether it came."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def offer(self, model: Model) -> None:
        """Hands over newer weights, which are taken up once no reply is under way; any thread."""
        with self._wake:
            self._offered = model
            self._wake.notify()

    def _seconds_until_free(self) -> int:
        turns = math.ceil(len(self._open) / self._slots)
        return int(min(max(turns * self._seconds, _LEAST_RETRY_S), _MOST_RETRY_S))

    def _deliver(self, news: list[tuple[Ticket, Sequence[Any], bool, Exception | None]]) -> None:
        for ticket, events, ended, error in news:
            if ended:
                ticket.is_left = True
                self._open.discard(ticket)
            ticket.take(events, ended, error)

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._use(self._load())
        except BaseException as error:
            self.failure = error
            self.on_failure()
            return
        while self._wait():
            assert self.engine
            self._take_up_offer()
            self._begin()
            self._tell([self._advance(ticket) for ticket in list(self._running)])
            self.engine.step()
        for turns in self._running.values():
            turns.close()  # type: ignore[attr-defined]

    def _use(self, model: Model) -> None:
        engine = self._make_engine(model)
        for tell in self.on_model:
            tell(engine)
        self.loaded_at, self.engine = time.time(), engine

    def _wait(self) -> bool:
        """Waits for something to do; returns whether there will be more."""
        with self._wake:
            while not (self.is_stopping or self._new or self._running or self._offered):
                # What was cancelled is freed by a step, which there is one more of after each job.
                self._wake.wait()
            return not self.is_stopping

    def _take_up_offer(self) -> None:
        """Takes up newer weights; while replies are under way, none begins."""
        if self._offered is None or self._running:
            return
        with self._wake:
            model, self._offered = self._offered, None
        assert self.engine
        self.engine.step()  # frees what was cancelled
        self._use(model)
        gc.collect()

    def _begin(self) -> None:
        assert self.engine
        while self._new and self._offered is None:
            ticket = self._new.popleft()
            self._running[ticket] = ticket.job(self.engine)

    def _advance(self, ticket: Ticket) -> tuple[Ticket, Sequence[Any], bool, Exception | None]:
        """Gives a job its turn: what it tells, whether it is done, and what went wrong."""
        events: Sequence[Any] = ()
        error: Exception | None = None
        try:
            if ticket.is_cancelled or time.monotonic() > ticket.deadline:
                self._running[ticket].close()  # type: ignore[attr-defined]
                if not ticket.is_cancelled:
                    error = ApiError(504, f"the reply takes more than {self._timeout:g} seconds")
            else:
                return ticket, next(self._running[ticket]), False, None
        except StopIteration:
            pass
        except Exception as failure:
            error = explained(failure)
            if error.status == 500:
                traceback.print_exception(failure, file=sys.stderr)
        del self._running[ticket]
        seconds = self._timeout - (ticket.deadline - time.monotonic())
        self._seconds += 0.1 * (seconds - self._seconds)
        return ticket, events, True, error

    def _tell(self, news: list[tuple[Ticket, Sequence[Any], bool, Exception | None]]) -> None:
        news = [new for new in news if new[1] or new[2]]
        if news and self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._deliver, news)

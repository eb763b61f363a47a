"""One look at everything that pages show, shared by all of them.

While at least one page is open the watcher looks at the files a few times a second and remembers
what has changed; each page's stream takes from that what it hasn't sent yet. So the cost doesn't
grow with the number of pages, and a slow page holds up nobody.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from bitttt_jax.runs.files import finite
from bitttt_jax.runs.follow import Position
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.cursors import Cursor, encode
from bitttt_jax.studio.feeds import Feed, LogFeed, MetricsFeed
from bitttt_jax.studio.job_routes import describe_job
from bitttt_jax.studio.processes import job_state, load_jobs
from bitttt_jax.studio.system import System

LOOK_SECONDS = 0.25
"""Between two looks at the watched files."""
_RUNS_SECONDS = 1.0
_SYSTEM_SECONDS = 2.0
_NEWS_SECONDS = 60.0


class Event(NamedTuple):
    """Something to tell a page."""

    event: str
    data: str
    """JSON."""
    id: str
    """The cursor after it; empty if it goes with the next one's."""


class Item(NamedTuple):
    """JSON of something, and the number of the look at which it became so."""

    data: str
    look: int


class View:
    """What one page has been told.

    Args:
      ids: runs whose metrics and logs it wants.
      cursor: how far it has read them.
    """

    def __init__(self, ids: Sequence[str], cursor: Cursor):
        self.ids = list(dict.fromkeys(ids))
        self.cursor = dict(cursor)
        self.look = -1
        """The last look that it knows of; it is told all that is so if negative."""


class Watcher:
    """Looks, and remembers.

    Args:
      studio: whose runs and jobs.
      system: this computer's readings.
    """

    def __init__(self, studio: Studio, system: System):
        self._studio, self._system = studio, system
        self._lock = threading.Lock()
        self._boot = secrets.randbelow(2**32)
        self._feeds: dict[str, Feed] = {}
        self._watched: dict[str, int] = {}
        self._next_runs = self._next_system = 0.0
        self._runs: dict[str, Item] = {}
        self._shape: Any = None
        self._shape_look = 0
        self._jobs: dict[str, Item] = {}
        self._over: set[str] = set()
        self._system_item = Item("{}", 0)
        self.count = 0
        """Looks so far that found something new."""

    def watch(self, ids: Sequence[str]) -> None:
        """Begins to follow runs for a page; reads the ends of their files."""
        for id in ids:
            folder = self._studio.run_store.folder(id)
            feeds = {
                f"m:{id}": MetricsFeed(id, folder / "metrics.jsonl"),
                f"l:{id}": LogFeed(id, folder / "train.log"),
            }
            with self._lock:
                self._watched[id] = self._watched.get(id, 0) + 1
                self._feeds = {**feeds, **self._feeds}

    def unwatch(self, ids: Sequence[str]) -> None:
        """Ends what `watch` began."""
        with self._lock:
            for id in ids:
                self._watched[id] -= 1
                if not self._watched[id]:
                    del self._watched[id]
            self._feeds = {k: f for k, f in self._feeds.items() if k[2:] in self._watched}

    def look(self) -> bool:
        """Looks at everything that is due; returns whether something is new."""
        with self._lock:
            number, now = self.count + 1, time.monotonic()
            # All of them: `any` of a generator would stop at the first.
            changed = any([feed.poll() for feed in self._feeds.values()])
            if now >= self._next_runs:
                self._next_runs = now + _RUNS_SECONDS
                changed |= self._look_at_runs(number)
                changed |= self._look_at_jobs(number)
            if now >= self._next_system:
                self._next_system = now + _SYSTEM_SECONDS
                self._system_item = Item(_dump(self._system.reading()), number)
                changed = True
            self.count = number if changed else self.count
            return changed

    def news(self, view: View, *, may_read: bool) -> list[Event] | None:
        """What a page hasn't been told yet; counts it as told.

        Args:
          view: the page's.
          may_read: whether files may be read for it, which takes time.

        Returns:
          The events, or None if files have to be read.
        """
        parts = []
        for id in view.ids:
            for kind, event in (("m", "metrics"), ("l", "log")):
                feed = self._feeds.get(f"{kind}:{id}")
                if feed is None:
                    continue
                position = view.cursor.setdefault(f"{kind}:{id}", feed.position)
                new = feed.since(position) if may_read else feed.known_since(position)
                if new is None:
                    return None
                parts += [(f"{kind}:{id}", event, part) for part in new]
        seen, events = self.count, []
        for key, event, part in parts:
            view.cursor[key] = part.end
            events.append(Event(event, part.data, encode(view.cursor)))
        # States can be told twice, rows can't: a page that is cut off before the end of this hears
        # of all states again.
        events += [Event(event, data, "") for event, data in self._states(view)]
        view.look = seen
        view.cursor["v"] = Position(seen, self._boot)
        return [*events[:-1], *(e._replace(id=encode(view.cursor)) for e in events[-1:])]

    def resume(self, view: View) -> None:
        """Takes up a view whose cursor is of this watcher where it ended."""
        version = view.cursor.get("v")
        if version and version.check == self._boot:
            view.look = version.offset

    def _states(self, view: View) -> list[tuple[str, str]]:
        told = []
        if self._shape_look > view.look:
            items = ",".join(item.data for item in self._runs.values())
            told.append(("runs", f'{{"runs":[{items}]}}'))
        else:
            new = (item for item in self._runs.values() if item.look > view.look)
            told += [("run", item.data) for item in new]
        told += [("job", item.data) for item in self._jobs.values() if item.look > view.look]
        if self._system_item.look > view.look:
            told.append(("system", self._system_item.data))
        return told

    def _look_at_runs(self, number: int) -> bool:
        runs = self._studio.run_store.runs()
        shape = [(run["id"], run["state"], run["alive"], run["not_responding"]) for run in runs]
        changed = shape != self._shape
        if changed:
            self._shape, self._shape_look = shape, number
        found = {}
        for run in runs:
            data, old = _dump(run), self._runs.get(run["id"])
            is_same = old is not None and old.data == data
            found[run["id"]] = old if old is not None and is_same else Item(data, number)
            changed |= not is_same
        self._runs = found
        return changed

    def _look_at_jobs(self, number: int) -> bool:
        found, changed, now = {}, False, time.time()
        for job in load_jobs(self._studio.jobs):
            old, state = self._jobs.get(job.id), job_state(job)
            is_over = state.state != "running"
            if job.kind == "train" or (is_over and now - (state.ended or 0) > _NEWS_SECONDS):
                continue  # a run tells of itself; what has ended long ago is no news
            if old is not None and job.id in self._over:
                found[job.id] = old
                continue
            data = _dump(describe_job(self._studio, job))
            is_same = old is not None and old.data == data
            found[job.id] = old if old is not None and is_same else Item(data, number)
            changed |= not is_same
            self._over |= {job.id} if is_over else set()
        self._jobs = found
        return changed


def _dump(content: Any) -> str:
    return json.dumps(finite(content), allow_nan=False, separators=(",", ":"))

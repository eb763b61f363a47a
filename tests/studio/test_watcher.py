"""What pages are told, exactly once where that counts, however they come and go."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bitttt_jax.runs.follow import START
from bitttt_jax.studio import feeds
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.cursors import decode, encode
from bitttt_jax.studio.feeds import LogFeed, MetricsFeed, Part
from bitttt_jax.studio.system import System
from bitttt_jax.studio.watcher import Event, View, Watcher
from tests.studio.conftest import write_run


@pytest.fixture
def watcher(studio: Studio) -> Watcher:
    return Watcher(studio, System(studio.runs))


def rows(parts: list[Part]) -> list[int]:
    return [row["step"] for part in parts for row in json.loads(part.data)["rows"]]


def test_pages_at_any_place_get_each_row_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    feed = MetricsFeed("a", path)
    rng = random.Random(0)
    pages = {n: (START, []) for n in range(5)}
    text = "".join(f'{{"step": {n}, "x": {rng.random()}}}\n' for n in range(600))
    written = 0
    with path.open("a") as file:
        while written < len(text):
            amount = rng.randint(1, 900)  # in the middle of lines, too
            file.write(text[written : written + amount])
            file.flush()
            written += amount
            if rng.random() < 0.7:
                feed.poll()
            for n, (position, seen) in pages.items():
                if rng.random() < 0.3 + n / 8:
                    parts = feed.since(position)
                    seen += rows(parts)
                    pages[n] = (parts[-1].end if parts else position), seen
    feed.poll()
    for position, seen in pages.values():
        assert seen + rows(feed.since(position)) == list(range(600))


def test_rows_are_read_once_for_all_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    feed = MetricsFeed("a", path)
    position = feed.position
    with path.open("a") as file:
        file.write('{"step": 1}\n')
    assert feed.poll() and not feed.poll()
    monkeypatch.setattr(Path, "open", None)  # no page opens the file
    assert all(rows(feed.since(position)) == [1] for _ in range(8))


@pytest.mark.parametrize("new", ["", '{"step": 1}\n', '{"step": 1, "x": 5}\n' * 9])
def test_a_resumed_run_says_so(tmp_path: Path, new: str):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    feed = MetricsFeed("a", path)
    position = feed.position
    path.write_text(new)
    feed.poll()
    parts = feed.since(position)
    assert json.loads(parts[0].data) == {"id": "a", "rows": [], "reset": True}
    with path.open("a") as file:
        file.write('{"step": 3}\n')
    feed.poll()
    assert rows(feed.since(parts[-1].end)) == [3]


def test_who_is_far_behind_fetches_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feeds, "_MOST_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' * 50 + '{"ste')
    feed = MetricsFeed("a", path)
    (part,) = feed.since(START)
    assert json.loads(part.data)["reset"] and part.end == feed.position
    assert feed.position.offset == 600


def test_numbers_that_json_has_not(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": NaN, "b": Infinity, "c": null}\n')
    (part,) = MetricsFeed("a", path).since(START)
    assert '{"step": 1, "a": null, "b": null, "c": null}' in part.data


def test_a_flood_of_log_lines_is_cut(tmp_path: Path):
    path = tmp_path / "train.log"
    path.write_text("first\n")
    feed = LogFeed("a", path)
    with path.open("a") as file:
        file.writelines(f"line {n}\n" for n in range(1_000_000))
    assert feed.poll()
    (part,) = feed.since(START)
    content = json.loads(part.data)
    assert len(part.data) < 200_000 and content["lines"][-1] == "line 999999"
    assert content["skipped"] > 10_000_000 and content["lines"][0].startswith("line ")
    with path.open("a") as file:
        file.write("x" * 10_000_000)  # a line without an end
    assert feed.poll()
    content = json.loads(feed.since(part.end)[-1].data)
    assert len(content["lines"]) == 1 and len(content["lines"][0]) < 3000


def test_a_log_that_is_another_one_begins_anew(tmp_path: Path):
    path = tmp_path / "train.log"
    path.write_text("old 1\nold 2\n")
    feed = LogFeed("a", path)
    position = feed.position
    path.write_text("new 1\nnew 2\nnew 3\n")
    feed.poll()
    content = json.loads(feed.since(position)[0].data)
    assert content["lines"] == ["new 1", "new 2", "new 3"] and content["reset"]


def test_cursors():
    cursor = {"m:a/b \n": (5, 6), "l:日本": (7, 2**32 - 1)}
    assert decode(encode(cursor)) == cursor and encode(cursor).isascii()
    for word in ("", "x", "=", encode({}) + "A", "é", "W10", "eyJhIjogMX0", "A" * 10**6):
        assert decode(word) == {}
    for value in ([1, 2, 3], [-1, 0], ["a", 1], [1.5, 2], [2**60, 0], [True, 1]):
        assert decode(encode({"m:a": value})) == {}


def take(watcher: Watcher, view: View) -> list[Event]:
    return watcher.news(view, may_read=True) or []


def names(events: list[Event]) -> list[str]:
    return [event.event for event in events]


def test_states_come_when_they_change(watcher: Watcher, studio: Studio):
    write_run(studio.runs / "a")
    write_run(studio.runs / "b", state="stopped", create_time=1.0)
    view = View([], {})
    watcher.look()
    assert names(take(watcher, view)) == ["runs", "system"]
    assert take(watcher, view) == []
    watcher._next_runs = 0
    assert not watcher.look() and take(watcher, view) == []
    write_run(studio.runs / "a", step=6)
    watcher._next_runs = 0
    assert watcher.look()
    (event,) = take(watcher, view)
    assert event.event == "run" and json.loads(event.data)["step"] == 6 and event.id
    write_run(studio.runs / "a", step=6, state="saving")
    watcher._next_runs = 0
    watcher.look()
    (event,) = take(watcher, view)
    assert [run["state"] for run in json.loads(event.data)["runs"]] == ["saving", "stopped"]


def test_a_page_that_comes_back_goes_on_exactly(watcher: Watcher, studio: Studio):
    """Cut off after any event, it hears of each row once, and of all states."""
    folder = studio.runs / "a"
    write_run(folder)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    (folder / "train.log").write_text("line 0\n")
    watcher.watch(["a"])

    def grow(n: int) -> None:
        for name, text in (("metrics.jsonl", f'{{"step": {n}}}\n'), ("train.log", f"line {n}\n")):
            with (folder / name).open("a") as file:
                file.write(text)

    view = View(["a"], {})
    watcher.look()
    first = take(watcher, view)
    seen: list[int] = []
    lines: list[str] = []
    last = first[-1].id
    rng = random.Random(1)
    for n in range(1, 60):
        grow(n)
        write_run(folder, step=n)
        watcher._next_runs = 0
        watcher.look()
        view = View(["a"], decode(last))
        watcher.resume(view)
        events = take(watcher, view)
        for event in events[: rng.randint(0, len(events))]:  # then the connection ends
            content = json.loads(event.data)
            if event.event == "metrics":
                seen += [row["step"] for row in content["rows"]]
            if event.event == "log":
                lines += content["lines"]
            if event.event == "run":
                assert content["step"] <= n
            last = event.id or last
    view = View(["a"], decode(last))
    watcher.resume(view)
    for event in take(watcher, view):
        content = json.loads(event.data)
        seen += [row["step"] for row in content.get("rows", [])]
        lines += content.get("lines", [])
    assert seen == list(range(1, 60)) and lines == [f"line {n}" for n in range(1, 60)]


def test_a_cursor_of_an_earlier_studio_gets_all_states(watcher: Watcher, studio: Studio):
    watcher.look()
    view = View([], {})
    last = take(watcher, view)[-1].id
    other = Watcher(studio, System(studio.runs))
    other.look()
    view = View([], decode(last))
    other.resume(view)
    assert names(take(other, view)) == ["runs", "system"]


def test_feeds_go_with_their_last_page(watcher: Watcher, studio: Studio):
    for _ in range(3):
        watcher.watch(["a", "b"])
    watcher.watch(["b"])
    for _ in range(3):
        watcher.unwatch(["a", "b"])
    assert set(watcher._feeds) == {"m:b", "l:b"}
    watcher.unwatch(["b"])
    assert not watcher._feeds and not watcher._watched


@pytest.fixture
def polled(client: TestClient, studio: Studio) -> Iterator[Path]:
    folder = studio.runs / "a b"
    write_run(folder)
    (folder / "metrics.jsonl").write_text('{"step": 1, "x": 2}\n')
    (folder / "train.log").write_text("hello\n")
    yield folder


def test_polling_tells_the_same(client: TestClient, polled: Path):
    series = client.get("/api/runs/a%20b/series").json()
    assert series["tags"] == {"x": {"step": [1], "value": [2.0]}} and series["all_tags"] == ["x"]
    log = client.get("/api/runs/a%20b/log").json()
    assert log["lines"] == ["hello"] and log["bytes"] == 6
    with (polled / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "x": 3}\n{"step": 3')
    with (polled / "train.log").open("a") as file:
        file.write("again\nand")
    since = [series["cursor"], log["cursor"]]
    found = client.get("/api/poll", params={"run": "a b", "since": since}).json()["events"]
    assert [event["event"] for event in found] == ["metrics", "log", "runs", "system"]
    assert found[0]["data"]["rows"] == [{"step": 2, "x": 3}]
    assert found[1]["data"]["lines"] == ["again"]
    again = client.get("/api/poll", params={"run": "a b", "since": found[-1]["id"]}).json()
    assert again == {"events": []}


def test_watching_has_its_limits(client: TestClient):
    many = {"run": [f"r{n}" for n in range(40)]}
    assert client.get("/api/poll", params=many).status_code == 400
    assert client.get("/api/poll", params={"run": "../x"}).status_code == 404


def test_the_system(client: TestClient):
    found = client.get("/api/system").json()
    assert found["pressure"] in ("ok", "high", "full") and found["gpus"] == []
    assert 0 < found["memory"]["used"] < found["memory"]["total"]
    assert found["disk"]["free"] <= found["disk"]["total"] and found["cpu_percent"]

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from bitttt_jax.studio import loopback
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.processes import job_state, load_jobs
from bitttt_jax.studio.tensorboard import link_runs
from tests.studio import rooms


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return rooms.make_studio(tmp_path)


@pytest.fixture
def client(studio: Studio) -> Iterator[TestClient]:
    with rooms.client(studio) as opened:
        yield opened


def test_chosen_runs_are_shown_under_their_names(studio: Studio):
    for name in ("a", "b", "unwanted"):
        rooms.with_run(studio, name)
    (studio.runs / "deep").mkdir()
    (studio.runs / "b").rename(studio.runs / "deep" / "b")
    with rooms.client(studio) as client:
        answer = client.post("/api/tensorboard", json={"runs": ["a", "deep/b"]}).json()
        again = client.post("/api/tensorboard", json={"runs": ["deep/b", "a"]}).json()
        assert (
            again == answer == {"url": f"http://127.0.0.1:{answer['port']}/", "port": again["port"]}
        )

        def shown() -> bool:
            tags = httpx.get(f"{answer['url']}data/plugin/scalars/tags").json()
            return set(tags) == {"a", "deep/b"} and all("train/loss" in t for t in tags.values())

        rooms.wait_until(shown)
        (job,) = load_jobs(studio.jobs)
    assert job_state(job).state != "running"  # it has ended with the studio


@pytest.mark.parametrize(
    ("runs", "status"),
    [([], 400), (["no"], 404), (["../.."], 404), (["/etc"], 404), (["x"] * 101, 400), ([5], 400)],
)
def test_runs_that_are_refused(client: TestClient, studio: Studio, runs: list[str], status: int):
    (studio.runs / "no tb").mkdir()
    assert client.post("/api/tensorboard", json={"runs": runs}).status_code == status
    assert load_jobs(studio.jobs) == []


def test_a_board_that_doesn_t_start_says_why(
    client: TestClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
):
    rooms.with_run(studio)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(loopback, "free_port", lambda: taken.getsockname()[1])
        answer = client.post("/api/tensorboard", json={"runs": ["tiny"]})
    assert answer.status_code == 500
    assert answer.json()["error"]["what"] == "TensorBoard doesn't start"
    assert answer.json()["error"]["why"]


def test_links_are_made_once(tmp_path: Path):
    runs = [("a", tmp_path / "x"), ("b/c", tmp_path / "y")]
    place = link_runs(tmp_path / "links", runs)
    assert link_runs(tmp_path / "links", runs[::-1]) == place
    assert (place / "b" / "c").readlink() == tmp_path / "y"
    assert link_runs(tmp_path / "links", runs[:1]) != place

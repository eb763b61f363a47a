"""What went wrong, in words, with buttons that mend it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bitttt_jax.config_loading import apply_overrides, from_json, load_config, to_json
from bitttt_jax.errors import DataError, DivergedError
from bitttt_jax.runs.failures import describe_failure
from bitttt_jax.studio import cards, form
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.processes import Job, JobState, job_state
from tests.studio.conftest import until, write_run

OUT_OF_MEMORY = RuntimeError(
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 20.93G of 15.48G hbm. Exceeded hbm capacity by 5.45G."
)


def failed(studio: Studio, error: Exception, **config: Any) -> Path:
    """A run that has failed, with its files as the trainer writes them."""
    failure = describe_failure(error)
    folder = studio.runs / "run"
    write_run(folder, state="failed", pid=1, create_time=1.0, exit_code=failure.exit_code,
              error_kind=failure.kind)  # fmt: skip
    values = [f"--config.{key.replace('__', '.')}={value}" for key, value in config.items()]
    (folder / "config.json").write_text(to_json(apply_overrides(load_config("quickstart"), values)))
    content = dataclasses.asdict(failure) | {"tail": ["one", "\x1b[31mtwo\x1b[0m"]}
    (folder / "error.json").write_text(json.dumps(content))
    (folder / "train.log").write_text("a line of the log\n")
    (folder / "command.txt").write_text("$ old\nx = 1\n\n$ new --flag\njax = 0.10\n")
    return folder


def actions(card: dict[str, Any]) -> dict[str, Any]:
    return {a["label_key"]: a.get("changes", a.get("action")) for a in card["actions"]}


def test_out_of_memory(client: TestClient, studio: Studio):
    folder = failed(studio, OUT_OF_MEMORY, data__batch_size=12, optim__accumulation=4)
    card = client.get("/api/runs/run").json()["card"]
    assert card["kind"] == "out_of_memory" and card["exit_code"] == 3
    assert "20.9 GiB" in card["title"] and "15.5 GiB" in card["title"] and len(card["hints"]) == 3
    assert card["tail"] == ["one", "two"] and "RuntimeError" in card["traceback"]
    found = actions(card)
    assert found == {
        "halve_batch": {"data.batch_size": 6, "optim.accumulation": 3},
        "double_accumulation": {"optim.accumulation": 12},
        "remat_full": {"model.remat": "full"},
        "estimate": "estimate",
        "clone": "clone",
    }
    config = from_json((folder / "config.json").read_bytes())
    for changes in (value for value in found.values() if isinstance(value, dict)):
        apply_overrides(config, form.overrides(changes))  # valid
    for part in ("$ new --flag\njax = 0.10", "out_of_memory (exit code 3)", "a line of the log"):
        assert part in card["diagnostics"]
    assert "old" not in card["diagnostics"]


def test_out_of_memory_at_the_end_of_the_road(client: TestClient, studio: Studio):
    failed(studio, OUT_OF_MEMORY, data__batch_size=1, model__remat="full")
    found = actions(client.get("/api/runs/run").json()["card"])
    assert set(found) == {"estimate", "clone"}


@pytest.mark.parametrize("rows", range(1, 25))
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6])
def test_every_remedy_is_valid(rows: int, parts: int):
    if rows % parts:
        return
    values = {"data.batch_size": rows, "optim.accumulation": parts}
    config = form.check_values("debug", values, []).config
    for action in cards.fixes("out_of_memory", json.loads(to_json(config))):
        changed = apply_overrides(config, form.overrides(action["changes"]))
        per_part = changed.data.batch_size / changed.optim.accumulation
        assert per_part < rows / parts or changed.model.remat == "full"


def test_divergence(client: TestClient, studio: Studio):
    failed(studio, DivergedError("10 updates in a row had a non-finite loss"), optim__lr=0.01)
    card = client.get("/api/runs/run").json()["card"]
    assert card["kind"] == "diverged" and card["traceback"] is None
    found = actions(card)
    assert found["halve_lr"] == {"optim.lr": 0.005}
    assert found["clip_norm"] == {"optim.clip_norm": 0.5}


def test_bad_data(client: TestClient, studio: Studio):
    failed(studio, DataError("texts/a.txt: invalid UTF-8", "byte 0xff", "another file"))
    card = client.get("/api/runs/run").json()["card"]
    assert (card["kind"], card["title"], card["why"]) == (
        "data", "texts/a.txt: invalid UTF-8", "byte 0xff",
    )  # fmt: skip
    found = actions(card)
    assert found["skip_bad"] == {"data.on_error": "skip"} and found["open_data"] == "open_data"


def test_a_message_of_the_log(fake: Callable[..., Job], studio: Studio, client: TestClient):
    """Before the run has its folder, its words stand only there."""
    job = fake("exit", "run", "2")
    until(lambda: job_state(job).state == "failed")
    card = client.get("/api/runs/run").json()["card"]
    assert (card["kind"], card["title"], card["why"]) == (
        "config", "it didn't want to", "because of this",
    )  # fmt: skip
    assert card["hints"] == ["something else", "another thing"]
    job_answer = client.get(f"/api/jobs/{job.id}").json()
    assert job_answer["state"] == "failed" and job_answer["card"]["title"] == card["title"]
    assert "fake_trainer" in card["diagnostics"]


def test_a_killed_process(fake: Callable[..., Job], client: TestClient):
    job = fake("kill")
    until(lambda: job_state(job).state == "failed")
    card = client.get("/api/runs/run").json()["card"]
    assert card["kind"] == "killed" and "SIGKILL" in card["title"] and card["exit_code"] == -9
    assert card["tail"] == ["the last words"]


def test_the_kernel_killed_it(studio: Studio, fake: Callable[..., Job]):
    job = fake("kill")
    until(lambda: job_state(job).state == "failed")
    card = cards.job_card(job, JobState("failed", -9, oom_kills=2))
    assert card and "memory" in card["title"] and "2 processes" in card["why"]


def test_lost_and_resumable(client: TestClient, studio: Studio):
    folder = studio.runs / "run"
    write_run(folder, create_time=1.0, pid=1)
    assert "resume" not in actions(client.get("/api/runs/run").json()["card"])
    path = folder / "ckpt" / "5"
    (path / "state").mkdir(parents=True)
    (path / "state" / "_METADATA").touch()
    (path / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
    card = client.get("/api/runs/run").json()["card"]
    assert card["kind"] == "lost" and actions(card)["resume"] == "resume"


def test_runs_that_are_well_have_no_card(client: TestClient, studio: Studio):
    for state in ("running", "compiling", "finished", "stopped"):
        write_run(studio.runs / "run", state=state)
        assert client.get("/api/runs/run").json()["card"] is None


@pytest.mark.parametrize("number", [6, 9, 11, 15, 63, 200])
def test_all_signals_have_words(fake: Callable[..., Job], number: int):
    job = dataclasses.replace(fake("exit", "run", "0"))
    card = cards.job_card(job, JobState("failed", -number))
    assert card and card["title"].startswith("Ended by") and card["kind"] == "killed"


def test_a_missing_extra(fake: Callable[..., Job], studio: Studio):
    job = fake("exit", "run", "2")
    until(lambda: job_state(job).state == "failed")
    job.log.write_text('error: it needs more\n  Try: pip install "bitttt-jax[hf]"\n')
    card = cards.job_card(job, JobState("failed", 2))
    assert card and card["kind"] == "missing_extra"

"""Runs from their start to the trash, with the real trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import from_json, load_config, to_json
from bitttt_jax.studio import trainings
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.processes import Job, load_jobs
from tests.studio.conftest import until, write_run

TINY = {
    "steps": 1_000_000, "data.seq_len": 16, "model.dim": 16, "model.mlp_dim": 32,
    "model.ttt.mini_batch": 8, "checkpoint.every_steps": 0, "eval.every_steps": 0,
    "log.every_steps": 1, "log.health_every_steps": 0, "log.tensorboard": False,
    "model.num_layers": 1, "model.mixers": ["ttt_linear"], "optim.warmup_steps": 0,
}  # fmt: skip


@pytest.mark.slow
def test_start_stop_resume_and_finish(client: TestClient, studio: Studio, tmp_path: Path):
    """Every value of the form is in the run's config.json; the log, curves and states are true."""
    text = tmp_path / "texts" / "a text, with a comma.txt"
    text.write_text("some words to learn from, again and again. " * 200)
    (tmp_path / "texts" / "b.txt").write_text("others to be measured on. " * 200)
    values = {**TINY, "data.sources.0.path": str(text.parent), "data.validation_fraction": 0.5}
    checked = client.post("/api/form/check", json={"preset": "debug", "values": values}).json()
    assert checked["ok"] and checked["values"] == values
    body = {"config": checked["config"], "name": "tiny run", "device": "cpu"}
    assert client.post("/api/runs", json=body).json() == {"id": "tiny run"}
    assert client.post("/api/runs", json=body).status_code == 409
    url = "/api/runs/tiny%20run"
    get = lambda: client.get(url).json()

    run = until(lambda: (r := get())["step"] > 3 and r, 100)
    assert run["alive"] and run["can_stop"] and not run["can_resume"]
    assert json.loads((studio.runs / "tiny run" / "config.json").read_text()) == checked["config"]
    pasted = client.post("/api/form/check", json={"command": run["command"]}).json()
    assert pasted["ok"] and pasted["values"] == values and pasted["preset"] == "debug"
    assert client.post(f"{url}/resume", json={}).status_code == 409
    assert client.post(f"{url}/delete", json={}).status_code == 409

    assert client.post(f"{url}/stop", json={}).status_code == 200
    run = until(lambda: (r := get())["can_resume"] and r, 100)
    assert (run["state"], run["exit_code"], run["card"]) == ("stopped", 42, None)
    assert run["checkpoints"][-1]["step"] == run["step"] > 3
    assert client.post(f"{url}/stop", json={}).status_code == 409
    series = client.get(f"{url}/series?points=20000").json()["tags"]["train/loss"]
    assert series["step"] == list(range(1, run["step"] + 1))
    log = client.get(f"{url}/log").json()["lines"]
    assert any(line.startswith("mesh") for line in log) and not any("\r" in line for line in log)

    last = run["step"] + 50
    answer = client.post(f"{url}/resume", json={"changes": {"steps": last}})
    assert answer.json()["state"] in ("starting", "compiling")
    ended = lambda r: r["state"] in ("finished", "failed") and r["can_resume"]
    run = until(lambda: ended(r := get()) and r, 100)
    assert (run["state"], run["exit_code"], run["step"]) == ("finished", 0, last), run["card"]
    assert any(event["kind"] == "resume" for event in run["events"])
    curves = client.get(f"{url}/series?tags=lr&points=20000").json()["tags"]
    assert curves["lr"]["step"] == list(range(1, last + 1))
    clone = client.get(f"{url}/clone").json()
    assert clone == {"preset": "debug", "values": values | {"steps": last}}

    trash = Path(client.post(f"{url}/delete", json={}).json()["trash"])
    assert (trash / "config.json").exists() and client.get(url).status_code == 404
    assert client.get("/api/runs").json() == {"runs": []}


@pytest.mark.slow
def test_an_estimate(client: TestClient):
    body = {"preset": "debug", "values": {**TINY, "steps": 10}, "device": "cpu"}
    answer = client.post("/api/form/estimate", json=body)
    assert answer.status_code == 201
    url = f"/api/jobs/{answer.json()['job']}"
    job = until(lambda: (j := client.get(url).json())["state"] != "running" and j, 100)
    assert (job["state"], job["kind"], job["card"]) == ("done", "estimate", None), job["log_tail"]
    result = job["result"]
    assert result["parameters"]["ternary"] > 0 and result["device_bytes"] > 0
    assert result["step_s"] > 0 and result["card"] is None


def test_a_run_that_cannot_begin(client: TestClient, studio: Studio):
    values = {"data.sources.0.path": "/no/such/file"}
    config = client.post("/api/form/check", json={"preset": "debug", "values": values}).json()
    body = {"config": config["config"], "name": "x", "device": "cpu"}
    assert client.post("/api/runs", json=body).status_code == 201
    run = until(lambda: (r := client.get("/api/runs/x").json())["state"] == "failed" and r, 100)
    written = (studio.runs / "x" / "config.json").read_text()
    assert json.loads(written) == config["config"]
    assert run["exit_code"] in (2, 5) and "/no/such/file" in run["card"]["title"]
    assert run["alive"] is False or until(lambda: not client.get("/api/runs/x").json()["alive"])
    # The card's button changes a value, and the same run starts anew.
    answer = client.post("/api/runs/x/resume", json={"changes": {"steps": 0}})
    assert answer.status_code == 400
    answer = client.post("/api/runs/x/resume", json={"changes": {"data.on_error": "skip"}})
    assert answer.status_code == 200
    assert load_jobs(studio.jobs)[-1].argv[-1] == "--config.data.on_error=skip"


def test_a_configuration_that_is_none(client: TestClient, studio: Studio):
    for config in ({}, {"steps": 0}, {"nix": 1}, {"model": 5}):
        answer = client.post("/api/runs", json={"config": config, "name": "x", "device": "moon"})
        assert answer.status_code == 400
    assert not (studio.runs / "x").exists()


def test_devices():
    assert trainings.device_flags("") == ([], {})
    assert trainings.device_flags("cpu") == (["--platform=cpu"], {})
    assert trainings.device_flags("gpu:1") == (["--platform=gpu"], {"CUDA_VISIBLE_DEVICES": "1"})
    for device in ("cpu:1", "gpu:-1", "gpu:1;ls", "--platform=cpu", "GPU", "gpu:1\n"):
        with pytest.raises(RequestError):
            trainings.device_flags(device)


def test_a_run_of_a_terminal_is_stopped_alone(fake: Callable[..., Job], studio: Studio):
    """Its process group is the terminal's: others in it are left alone."""
    job = fake("save")
    until((studio.runs / "run" / "ready").exists)
    # As the studio sees a run that it hasn't started.
    (job.folder / "job.json").unlink()
    from bitttt_jax.studio import processes

    processes._known.clear()
    facts = studio.run_store.facts("run")
    assert facts.job is None and facts.alive
    assert trainings.stop(studio.run_store, facts, force=False) == []
    until(lambda: studio.run_store.facts("run").state == "stopped")
    until((job.folder / "exit.json").exists)
    processes._children.pop(str(job.folder)).wait()


def test_another_hosts_run_cannot_be_stopped(client: TestClient, studio: Studio):
    write_run(studio.runs / "a", host="elsewhere")
    assert client.get("/api/runs/a").json()["alive"] is None
    answer = client.post("/api/runs/a/stop", json={"force": True})
    assert answer.status_code == 409 and "elsewhere" in answer.json()["error"]["what"]
    assert client.post("/api/runs/a/delete", json={}).status_code == 409


def test_the_nearest_preset_is_found():
    config = from_json(to_json(load_config("ttt_125m")))
    assert trainings.clone(config) == {"preset": "ttt_125m", "values": {}}
    renamed = from_json(to_json(config).replace('"ttt_125m"', '"mine"'))
    assert trainings.clone(renamed) == {"preset": "ttt_125m", "values": {"name": "mine"}}
    assert trainings.clone(TrainConfig())["values"]["name"] == "custom"

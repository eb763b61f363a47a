"""Runs over HTTP: the list, one of them, its curves, log and samples; start, stop, remove."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from bitttt_jax.config_loading import difference, load_config
from bitttt_jax.runs.follow import Follower
from bitttt_jax.studio import cards, form, trainings
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.cursors import encode
from bitttt_jax.studio.curves import Curves
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.feeds import log_position
from bitttt_jax.studio.form_routes import Values
from bitttt_jax.studio.job_routes import StopBody, refuse_survivors
from bitttt_jax.studio.logs import tail_lines
from bitttt_jax.studio.routing import Created, get, number, post
from bitttt_jax.studio.run_files import checkpoints, read_json
from bitttt_jax.studio.run_store import RunFacts

_EVENTS = 200


@dataclasses.dataclass(frozen=True)
class StartBody:
    """A new run."""

    config: dict[str, Any]
    """Nested, as a check answers it."""
    name: str
    device: str = ""


@dataclasses.dataclass(frozen=True)
class ResumeBody:
    """How to go on."""

    changes: Values = dataclasses.field(default_factory=dict)
    """Values to change first."""


def routes(studio: Studio) -> list[BaseRoute]:
    """GET runs and below; POST runs, and stop, resume, delete of one."""
    store, curves = studio.run_store, Curves()

    def find(request: Request) -> RunFacts:
        return store.facts(request.path_params["id"])

    def detail(request: Request) -> dict[str, Any]:
        facts = find(request)
        return store.run(facts.id) | describe(facts)

    def series(request: Request) -> dict[str, Any]:
        facts = find(request)
        tags = request.query_params.get("tags", "")
        points = number(request, "points", 2000, low=10, high=20_000)
        return curves.read(facts.id, facts.folder, tags.split(",") if tags else None, points)

    def log(request: Request) -> dict[str, Any]:
        facts = find(request)
        path = facts.folder / "train.log"
        lines, size = tail_lines(path, number(request, "lines", 500, low=1, high=5000))
        cursor = encode({f"l:{facts.id}": log_position(path, size)})
        return {"lines": lines, "bytes": size, "cursor": cursor}

    def log_file(request: Request) -> Response:
        path = find(request).folder / "train.log"
        if not path.is_file():
            raise RequestError(404, "this run has no log")
        return FileResponse(path, media_type="text/plain", filename="train.log")

    def samples(request: Request) -> dict[str, Any]:
        rows, _ = Follower(find(request).folder / "events.jsonl").read()
        found = [
            {"step": row.get("step"), "text": str(row.get("text"))}
            for row in rows
            if row.get("kind") == "sample"
        ]
        return {"samples": found}

    def start(request: Request, body: StartBody) -> Created:
        config = trainings.config_from(body.config)
        trainings.start(studio.runs, studio.jobs, config, body.name, body.device)
        return Created({"id": body.name})

    def stop(request: Request, body: StopBody) -> dict[str, Any]:
        facts = find(request)
        refuse_survivors(trainings.stop(store, facts, body.force))
        return store.run(facts.id)

    def resume(request: Request, body: ResumeBody) -> dict[str, Any]:
        facts = find(request)
        trainings.resume(studio.jobs, facts, body.changes)
        return store.run(facts.id)

    def delete(request: Request) -> dict[str, Any]:
        return {"trash": str(trainings.delete(studio.home, find(request)))}

    def clone(request: Request) -> dict[str, Any]:
        facts = find(request)
        config = trainings.read_config(facts)
        if config is None:
            raise RequestError(409, f"{facts.id} has no configuration that this version reads")
        return trainings.clone(config)

    return [
        get("/runs", lambda _: {"runs": store.runs()}),
        post("/runs", start, StartBody),
        get("/runs/{id}", detail),
        get("/runs/{id}/series", series),
        get("/runs/{id}/log", log),
        get("/runs/{id}/log/file", log_file),
        get("/runs/{id}/samples", samples),
        get("/runs/{id}/clone", clone),
        post("/runs/{id}/stop", stop, StopBody),
        post("/runs/{id}/resume", resume, ResumeBody),
        post("/runs/{id}/delete", lambda request, _: delete(request)),
    ]


def describe(facts: RunFacts) -> dict[str, Any]:
    """What a run's page shows besides its entry in the list, as JSON values."""
    content = read_json(facts.folder / "config.json")
    content = content if isinstance(content, dict) else {}
    events, _ = Follower(facts.folder / "events.jsonl").read()
    argv = _argv(facts)
    is_running = bool(facts.job_state and facts.job_state.state == "running")
    return {
        "config": content,
        "differences": _differences(facts),
        "argv": argv,
        "command": shlex.join(argv),
        "checkpoints": checkpoints(facts.folder, events),
        "card": cards.run_card(facts, content),
        "can_resume": facts.alive is False and not is_running and bool(content),
        "can_stop": bool(facts.alive) or is_running,
        "events": events[-_EVENTS:],
        "folder": str(facts.folder.absolute()),
    }


def _differences(facts: RunFacts) -> list[dict[str, Any]]:
    config = trainings.read_config(facts)
    if config is None:
        return []
    preset = load_config(form.nearest_preset(config))
    return [
        {"key": key, "value": form.plain(value), "preset_value": form.plain(before)}
        for key, before, value in difference(preset, config)
    ]


def _argv(facts: RunFacts) -> list[str]:
    """The command of the newest start, as a user would type it."""
    try:
        text = (facts.folder / "command.txt").read_text(encoding="utf-8")
        words = shlex.split(re.findall(r"^\$ (.*)$", text, re.MULTILINE)[-1])
    except (OSError, ValueError, IndexError):
        words = facts.job.argv if facts.job else []
    for module, command in (("bitttt_jax.train", ["train"]), ("bitttt_jax", [])):
        if words[1:3] == ["-m", module]:
            return ["bitttt", *command, *words[3:]]
    return [Path(words[0]).name, *words[1:]] if words else []

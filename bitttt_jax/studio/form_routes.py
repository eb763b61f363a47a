"""The form over HTTP: its fields, checks, the command both ways, the size dial, an estimate."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute

from bitttt_jax.config.sizes import parse_size, resize
from bitttt_jax.config_loading import to_json
from bitttt_jax.runs.files import write_atomically
from bitttt_jax.studio import cards, form
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.processes import Job, start_job
from bitttt_jax.studio.routing import Created, get, post
from bitttt_jax.studio.run_files import read_json
from bitttt_jax.studio.schema import schema
from bitttt_jax.studio.trainings import device_flags

Scalar = bool | int | float | str
Values = dict[str, Scalar | list[Scalar]]

_ESTIMATE = '{"kind": "estimate"'


@dataclasses.dataclass(frozen=True)
class CheckBody:
    """A form's values, or a command instead."""

    preset: str = ""
    values: Values = dataclasses.field(default_factory=dict)
    command: str = ""


@dataclasses.dataclass(frozen=True)
class SizeBody:
    """A form's values, and where the dial stands."""

    preset: str
    size: str
    values: Values = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EstimateBody:
    """A form's values, and where they would run."""

    preset: str
    values: Values = dataclasses.field(default_factory=dict)
    device: str = ""


def routes(studio: Studio) -> list[BaseRoute]:
    """GET schema, POST form/check, form/size and form/estimate."""
    roots = [studio.runs, *studio.data_roots]

    def check(request: Request, body: CheckBody) -> dict[str, Any]:
        if body.command:
            return form.check_command(body.command, roots).as_json()
        return form.check_values(body.preset, body.values, roots).as_json()

    def size(request: Request, body: SizeBody) -> dict[str, Any]:
        preset = form.check_values(body.preset, {}, roots).config
        resized = form.values_between(preset, resize(preset, parse_size(body.size)))
        kept = {key: value for key, value in body.values.items() if key not in _dial()}
        return form.check_values(body.preset, kept | resized, roots).as_json()

    def estimate(request: Request, body: EstimateBody) -> Created:
        checked = form.check_values(body.preset, body.values, roots)
        refuse_problems(checked)
        flags, env = device_flags(body.device)
        arguments = form.command_arguments(checked.preset, checked.config)
        job = start_job(
            studio.jobs,
            "estimate",
            f"Estimate of {checked.config.name}",
            [*arguments, "--dry_run", "--console=json", *flags],
            env=env,
        )
        write_atomically(job.folder / "config.json", to_json(checked.config))
        return Created({"job": job.id})

    studio.results["estimate"] = _read_estimate
    return [
        get("/schema", lambda _: schema()),
        post("/form/check", check, CheckBody),
        post("/form/size", size, SizeBody),
        post("/form/estimate", estimate, EstimateBody),
    ]


def refuse_problems(checked: form.Checked) -> None:
    """Refuses values that aren't right.

    Raises:
      RequestError: with all problems.
    """
    if checked.problems:
        messages = [problem["message"] for problem in checked.problems]
        raise RequestError(
            400, "the configuration isn't valid", "\n".join(messages), problems=checked.problems
        )


def _dial() -> set[str]:
    """Keys that the size dial sets."""
    model = ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
    return {"optim.lr", "data.batch_size", *(f"model.{name}" for name in model)}


def _read_estimate(job: Job) -> dict[str, Any] | None:
    """What a dry run has printed, with a card if it doesn't fit."""
    for line in reversed(job.log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith(_ESTIMATE):
            found: dict[str, Any] = json.loads(line)
            failure = found.pop("failure", None)
            config = read_json(job.folder / "config.json")
            found["card"] = failure and cards.failure_card(failure, config or {})
            return found
    return None

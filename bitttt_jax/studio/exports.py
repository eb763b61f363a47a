"""Exports: models converted for other programs or for this one, and their download."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from bitttt_jax.runs.files import read_rows
from bitttt_jax.studio.archives import files_below, zip_chunks
from bitttt_jax.studio.errors import RequestError
from bitttt_jax.studio.files import kind_of, locate
from bitttt_jax.studio.models import find_model, kind_of_model
from bitttt_jax.studio.paths import check_name
from bitttt_jax.studio.processes import Job, job_state, load_jobs, start_job
from bitttt_jax.studio.routing import Created, get, post

if TYPE_CHECKING:
    from bitttt_jax.studio.app import Studio

_SHOWN_FILES = 200


@dataclasses.dataclass(frozen=True)
class ExportRequest:
    """What to convert into what: the flags of `bitttt convert`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model: str
    name: str
    step: int | None = None
    to: Literal[
        "packed", "hf", "hf-packed", "gguf-f16", "gguf-tq1_0", "gguf-tq2_0", "gguf-i2_s"
    ] = "packed"
    layout: Literal["i2_s", "rows4", "base3"] = "i2_s"
    table: Literal["exact", "int8", "int4", "int4x2"] = "exact"


def convert_command(asked: ExportRequest, source: Path, place: Path) -> list[str]:
    """The arguments of `bitttt`: paths are absolute, so none of them can be taken for a flag."""
    command = ["convert", str(source), str(place), f"--to={asked.to}"]
    if asked.to == "packed":
        command += [f"--layout={asked.layout}", f"--table={asked.table}"]
    return command if asked.step is None else [*command, f"--step={asked.step}"]


def start_export(studio: Studio, asked: ExportRequest) -> Job:
    """Starts a conversion.

    Raises:
      RequestError: 409, the name is taken; 404, no such model or step.
    """
    model = find_model(studio, asked.model)
    if asked.step is not None and asked.step not in model.steps:
        raise RequestError(
            404,
            f"{model.name} has no checkpoint of step {asked.step}",
            f"it has {', '.join(map(str, model.steps)) or 'none'}",
        )
    name = check_name(asked.name)
    if asked.to.startswith("gguf") and not name.endswith(".gguf"):
        name = check_name(f"{name}.gguf")
    place = _folder(studio) / name
    # Names without case are told apart by this program, but not by every disk.
    taken = {path.name.lower() for path in _folder(studio).iterdir()}
    if name.lower() in taken or str(place) in _places_in_work(studio):
        raise RequestError(409, f"there is an export named {name} already", fix="another name")
    title = f"{model.name} → {name}"
    command = convert_command(asked, Path(model.path), place)
    return start_job(studio.jobs, "convert", title, command, subject=str(place))


def _folder(studio: Studio) -> Path:
    folder = studio.home.resolve() / "exports"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _places_in_work(studio: Studio) -> set[str]:
    jobs = (job for job in load_jobs(studio.jobs) if job.kind == "convert")
    return {job.subject for job in jobs if job_state(job).state == "running"}


def export_result(job: Job) -> dict[str, Any] | None:
    """What a finished conversion has made; None if that has been deleted."""
    place = Path(job.subject)
    described = _describe(place) if kind_of(place) else None
    return described and described | {"verification": verification(job)}


def verification(job: Job) -> str:
    """What the conversion said of its result: sizes, and how it compares when it is read back."""
    rows, _ = read_rows(job.folder / "progress.jsonl")
    return next((str(row["report"]) for row in reversed(rows) if "report" in row), "")


def _describe(place: Path) -> dict[str, Any]:
    paths = files_below(place) if place.is_dir() else [place]
    inside = place if place.is_dir() else place.parent
    files = [
        {"name": path.relative_to(inside).as_posix(), "bytes": path.stat().st_size}
        for path in paths
    ]
    return {
        "name": place.name,
        "path": str(place),
        "kind": kind_of_model(place),
        "bytes": sum(file["bytes"] for file in files),
        "files": files[:_SHOWN_FILES],
        "created": place.stat().st_mtime,
    }


def list_exports(studio: Studio) -> list[dict[str, Any]]:
    """All exports, newest first."""
    jobs = {job.subject: job for job in load_jobs(studio.jobs) if job.kind == "convert"}
    found = []
    for place in _folder(studio).iterdir():
        if place.name.startswith(".") or place.is_symlink() or not kind_of(place):
            continue
        job = jobs.get(str(place))
        found.append(_describe(place) | {"verification": verification(job) if job else ""})
    return sorted(found, key=lambda export: -export["created"])


def download(place: Path) -> Response:
    """A file, in parts if the browser asks for them, or a folder as a zip file."""
    if place.is_file():
        return FileResponse(place, media_type="application/octet-stream", filename=place.name)
    disposition = f"attachment; filename*=utf-8''{quote(place.name + '.zip', safe='')}"
    return StreamingResponse(
        zip_chunks(place),
        media_type="application/zip",
        headers={"Content-Disposition": disposition},
    )


def delete_export(place: Path) -> None:
    """Removes an export: it is gone at once, even if removing its files takes a while."""
    hidden = place.with_name(f".deleted-{place.name}")
    place.rename(hidden)
    if hidden.is_dir():
        shutil.rmtree(hidden)
    else:
        hidden.unlink()


def routes(studio: Studio) -> list[BaseRoute]:
    """`exports` and below."""
    studio.results["convert"] = export_result

    def place_of(request: Request) -> Path:
        folder = _folder(studio)
        return locate(folder / check_name(request.path_params["name"]), [folder])

    def start(request: Request, asked: ExportRequest) -> Created:
        return Created({"job": start_export(studio, asked).id})

    def delete(request: Request, _: Any) -> dict[str, Any]:
        delete_export(place_of(request))
        return {}

    return [
        get("/exports", lambda request: {"exports": list_exports(studio)}),
        post("/exports", start, ExportRequest),
        get("/exports/{name}/file", lambda request: download(place_of(request))),
        post("/exports/{name}/delete", delete),
    ]

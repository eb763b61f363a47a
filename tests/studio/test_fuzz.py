"""Random requests over the whole API, drawn from its own schema: none is a failure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from starlette.testclient import TestClient

from bitttt_jax.studio import form_routes, processes, trainings
from bitttt_jax.studio.app import Studio, api_routes
from tests.studio.conftest import TOKEN, write_run
from tests.studio.openapi import document

SETTINGS = hypothesis.settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "12")),
    deadline=None,
    derandomize=True,
    phases=[hypothesis.Phase.generate],
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TEXTS = ["", "a", "run", "../x", "\0", "é/\ud83d", "%2e%2e", "[]", "1e999", "x" * 300]


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch, studio: Studio) -> None:
    """Nothing is really started."""

    def start(jobs_folder: Path, kind: processes.Kind, title: str, argv: Any, **_: Any) -> Any:
        folder = jobs_folder / "20260101-000000-train-abc"
        folder.mkdir(parents=True, exist_ok=True)
        assert all(isinstance(word, str) and "\0" not in word for word in argv)
        return processes.Job(
            folder.name, kind, title, list(argv), folder, folder / "log", 2**22, 1.0, 1.0
        )

    for module in (trainings, form_routes):
        monkeypatch.setattr(module, "start_job", start)
    write_run(studio.runs / "run", create_time=1.0)
    (studio.runs / "run" / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n')
    (studio.runs / "run" / "train.log").write_text("line\n")


def operations() -> list[tuple[str, str]]:
    """Methods and paths of core's own routes; the others' tests fuzz theirs."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        paths = document(api_routes(Studio(Path(folder))))["paths"]
    own = ("/runs", "/form", "/schema", "/system", "/poll", "/jobs", "/info")
    return [
        (method, path)
        for path, methods in paths.items()
        for method in methods
        if path.startswith(own)
    ]


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize(("method", "path"), operations())
def test_no_request_is_a_failure(client: TestClient, studio: Studio, method: str, path: str):
    schema = schemathesis.openapi.from_dict(document(api_routes(studio)))
    operation = schema[path][method.upper()]

    @SETTINGS
    @hypothesis.given(case=operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        arguments = case.as_transport_kwargs(base_url="http://127.0.0.1:8701/api")
        headers = dict(arguments.pop("headers", None) or {})
        headers |= {"authorization": f"Bearer {TOKEN}", "origin": "http://127.0.0.1:8701"}
        try:
            answer = client.request(headers=headers, **_known(arguments))
        except (UnicodeError, ValueError, client_errors()):  # it can't even be sent
            return
        check(answer)

    ask()


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    names = ("method", "url", "params", "json", "content", "data")
    found = {name: arguments[name] for name in names if arguments.get(name) is not None}
    return found


def client_errors() -> type[Exception]:
    import httpx2

    return httpx2.InvalidURL


def check(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.headers.get("content-type") == "application/json":
        content = json.loads(answer.text, parse_constant=lambda name: pytest.fail(name))
        if answer.status_code >= 400:
            assert set(content["error"]) == {"what", "why", "fix"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(TEXTS) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["preset", "values", "command", "config", "name", "device", "force", "changes", "size"]


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("path", [p for m, p in operations() if m == "post"])
def test_no_body_is_a_failure(client: TestClient, path: str):
    @SETTINGS
    @hypothesis.given(
        body=JSON | st.dictionaries(st.sampled_from(NAMES), JSON),
        raw=st.none() | st.binary(max_size=50),
        id=st.sampled_from(["run", "..", "%00", "é", "a%2Fb"]),
    )
    def ask(body: Any, raw: bytes | None, id: str) -> None:
        content = raw if raw is not None else json.dumps(body).encode()
        url = "/api" + path.replace("{id}", id)
        check(client.post(url, content=content, headers={"content-type": "application/json"}))

    ask()


KEYS = ["optim.lr", "data.sources", "data.sources.0.path", "model", "seed", "", ".", "a..b", "0"]


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("path", ["/form/check", "/form/size", "/form/estimate"])
def test_no_values_are_a_failure(client: TestClient, path: str):
    scalar = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    keys = st.sampled_from(KEYS) | st.text()

    @SETTINGS
    @hypothesis.given(values=st.dictionaries(keys, scalar | st.lists(scalar, max_size=3)))
    def ask(values: dict[str, Any]) -> None:
        body = {"preset": "debug", "values": values}
        body |= {"size": "1m"} if path == "/form/size" else {}
        content = json.dumps(body).encode()
        check(
            client.post(
                f"/api{path}", content=content, headers={"content-type": "application/json"}
            )
        )

    ask()


@pytest.mark.usefixtures("calm")
def test_no_command_is_a_failure(client: TestClient):
    words = st.sampled_from(
        ["--config=debug", "--config", "debug", "--config.optim.lr=1", "--config.optim.lr", "--",
         "-", "--config.=", "--config.data.sources.0=", "--size=3m", "--size", "'", '"', "\\",
         "--nodry_run", "--config.model.mixers=a,b", "--workdir=x", "\n", "=", "--=", "-config=x"]
    ) | st.text(max_size=8)  # fmt: skip
    prefix = st.sampled_from(["bitttt train ", "python -m bitttt_jax.train ", ""])
    line: Callable[..., str] = lambda start, rest: start + " ".join(rest)

    @SETTINGS
    @hypothesis.given(command=st.builds(line, prefix, st.lists(words, max_size=6)))
    def ask(command: str) -> None:
        content = json.dumps({"command": command}).encode()
        answer = client.post(
            "/api/form/check", content=content, headers={"content-type": "application/json"}
        )
        check(answer)

    ask()

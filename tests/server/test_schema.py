"""Requests that schemathesis makes from the server's own description of itself."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.server.live import Live, until

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_what_the_description_allows_and_what_not(live: Live, mode: GenerationMode):
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()
        takes_json = any(body.media_type == "application/json" for body in operation.body)
        if mode is GenerationMode.NEGATIVE and not takes_json:
            continue  # every path and every file is allowed

        @hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("max_tokens"), int):
                case.body["max_tokens"] = min(case.body["max_tokens"], 16)
            case.call_and_validate(checks=CHECKS, timeout=120)

        ask()
    until(lambda: live.worker.waiting == 0)


def test_the_description_is_whole(live: Live):
    """Every route is in it, with the methods that it has."""
    with live.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    routes = {
        (route.path.replace(":path", ""), method.lower())
        for route in live.server.config.app.routes
        for method in route.methods - {"HEAD"}
    }
    assert routes - {("/openapi.json", "get")} == {
        (path, method) for path, methods in paths.items() for method in methods
    }

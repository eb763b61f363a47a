"""The studio's API as an OpenAPI document, made of its routes, for schemathesis."""

from __future__ import annotations

import re
from typing import Any

import pydantic
from starlette.routing import BaseRoute, Route

from bitttt_jax.studio.routing import ApiRoute

# What streams without an end, or needs a child process of its own for each request.
LEFT_OUT = ("/events",)


def document(routes: list[BaseRoute]) -> dict[str, Any]:
    """The document.

    Args:
      routes: of all modules.
    """
    paths: dict[str, dict[str, Any]] = {}
    definitions: dict[str, Any] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path in LEFT_OUT:
            continue
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        for method in (route.methods or set()) - {"HEAD"}:
            operation = _operation(path, method)
            body = route.body if isinstance(route, ApiRoute) else None
            if body is not None:
                schema = pydantic.TypeAdapter(body).json_schema(
                    ref_template="#/components/schemas/{model}"
                )
                definitions |= schema.pop("$defs", {})
                content = {"application/json": {"schema": schema}}
                operation["requestBody"] = {"required": True, "content": content}
            elif method == "PUT":
                content = {"application/octet-stream": {"schema": {"type": "string"}}}
                operation["requestBody"] = {"required": True, "content": content}
            paths.setdefault(path, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "studio", "version": "1"},
        "paths": paths,
        "components": {"schemas": definitions},
    }


def _operation(path: str, method: str) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", path)
    text = {"type": "string", "minLength": 1}
    query = {"GET": ("run", "since", "tags", "points", "lines", "path", "offset", "limit")}
    return {
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": text} for n in names),
            *(
                {"name": n, "in": "query", "schema": {"type": "string"}}
                for n in query.get(method, ("folder",))
            ),
        ],
        "responses": {"default": {"description": "anything but a failure of the studio"}},
    }

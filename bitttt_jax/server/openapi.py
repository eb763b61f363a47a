"""The endpoints in OpenAPI's words, at `/openapi.json`."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

import bitttt_jax
from bitttt_jax.server.schema import (
    ChatBody,
    CompletionBody,
    Learn,
    NewStream,
    Text,
    Write,
)

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "the request isn't as it must be",
    401: "the API key is missing or wrong",
    403: "the server isn't called by this name, or the page is of another site",
    404: "there is no such thing",
    408: "the body didn't come in time",
    409: "the stream is busy, or the state is of another model",
    413: "the body is too large",
    429: "too many requests; Retry-After says when to come again",
    500: "the server failed",
    503: "the model isn't there (yet)",
    504: "the reply takes too long",
}
_JSON, _EVENTS, _FILE = "application/json", "text/event-stream", "application/octet-stream"


def schema(playground: bool, has_key: bool) -> dict[str, Any]:
    """The document.

    Args:
      playground: whether the playground's endpoints are there.
      has_key: whether requests need an API key.
    """
    kinds: tuple[type[pydantic.BaseModel], ...] = (CompletionBody, ChatBody)
    if playground:
        kinds += (NewStream, Write, Text, Learn)
    _, definitions = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REF)
    security: dict[str, Any] = {"security": [{"key": []}]} if has_key else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "bitttt serve", "version": bitttt_jax.__version__},
        "paths": _openai_paths() | (_playground_paths() if playground else {}),
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **security,
    }


def _openai_paths() -> dict[str, Any]:
    open_: dict[str, Any] = {"security": []}
    return {
        "/health": {"get": _call("whether there is a model", [_JSON]) | open_},
        "/metrics": {"get": _call("numbers for Prometheus", ["text/plain"])},
        "/v1/models": {"get": _call("the model", [_JSON])},
        "/v1/models/{id}": {"get": _call("the model, by its name", [_JSON], one=True)},
        "/v1/completions": {"post": _call("continues a text", [_JSON, _EVENTS], CompletionBody)},
        "/v1/chat/completions": {
            "post": _call("answers in a conversation", [_JSON, _EVENTS], ChatBody)
        },
    }


def _playground_paths() -> dict[str, Any]:
    one = "/bitttt/streams/{id}"
    call = lambda text, kinds, body=None: _call(text, kinds, body, one=True)
    return {
        "/bitttt/model": {"get": _call("the model and what it can", [_JSON])},
        "/bitttt/streams": {"post": _call("a new stream", [_JSON], NewStream, success=201)},
        one: {
            "get": call("how a stream stands", [_JSON]),
            "delete": call("forgets a stream", [_JSON]),
        },
        f"{one}/write": {"post": call("takes a turn and writes the reply", [_EVENTS], Write)},
        f"{one}/read": {"post": call("reads a text", [_EVENTS], Text)},
        f"{one}/stop": {"post": call("ends what it does", [_JSON])},
        f"{one}/reset": {"post": call("forgets the conversation", [_JSON])},
        f"{one}/learn": {"post": call("whether learning stays", [_JSON], Learn)},
        f"{one}/system": {"post": call("sets the instructions", [_JSON], Text)},
        f"{one}/state": {
            "get": call("the state as a file", [_FILE]),
            "put": call("takes over a state", [_JSON])
            | {"requestBody": {"required": True, "content": {_FILE: {}}}},
        },
    }


def _call(
    text: str,
    kinds: list[str],
    body: type[pydantic.BaseModel] | None = None,
    *,
    one: bool = False,
    success: int = 200,
) -> dict[str, Any]:
    """One operation: what it does, what it answers with, and the body that it takes."""
    answers = {success: {"description": text, "content": {kind: {} for kind in kinds}}}
    refusals = {
        status: {"description": why, "content": {_JSON: {}}} for status, why in _ERRORS.items()
    }
    found: dict[str, Any] = {
        "summary": text,
        "responses": {str(status): answer for status, answer in (answers | refusals).items()},
    }
    if one:
        id_ = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
        found["parameters"] = [id_]
    if body is not None:
        content = {_JSON: {"schema": {"$ref": _REF.format(model=body.__name__)}}}
        found["requestBody"] = {"required": True, "content": content}
    return found

"""OpenAI's endpoints: models, completions, chats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitttt_jax.server import bodies
from bitttt_jax.server.answers import Answer
from bitttt_jax.server.failures import ApiError
from bitttt_jax.server.generation import generation
from bitttt_jax.server.metrics import Metrics
from bitttt_jax.server.schema import ChatBody, CompletionBody, Generation
from bitttt_jax.server.sse import EventStream, frame
from bitttt_jax.server.worker import Ticket, Worker

if TYPE_CHECKING:
    import numpy as np

    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.requests import Request

_COMPLETION_TOKENS = 16  # as OpenAI's server has it
_CHAT_TOKENS = 2048


class OpenAI:
    """The endpoints.

    Args:
      worker: runs the model.
      metrics: counts.
      name: of the model.
      max_body: most bytes of a body.
    """

    def __init__(self, worker: Worker, metrics: Metrics, name: str, max_body: int):
        self._worker, self._metrics, self._name = worker, metrics, name
        self._max_body = max_body

    def routes(self) -> list[Route]:
        """The endpoints' routes."""
        return [
            Route("/v1/models", self._models),
            Route("/v1/models/{id:path}", self._model),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]

    async def _models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _model(self, request: HttpRequest) -> Response:
        self._check_name(request.path_params["id"])
        return JSONResponse(self._description())

    def _description(self) -> dict[str, Any]:
        self._worker.ready_engine()
        created = int(self._worker.loaded_at)
        return {"id": self._name, "object": "model", "created": created, "owned_by": "bitttt"}

    async def _completions(self, request: HttpRequest) -> Response:
        engine = self._worker.ready_engine()
        body = await bodies.read(request, CompletionBody, self._max_body)
        self._check(body, {"echo": body.echo, "suffix": body.suffix, "best_of": body.best_of})
        tokens = await asyncio.to_thread(_completion_prompt, engine, body)
        length = body.max_tokens or _COMPLETION_TOKENS
        asked = _request(engine, body, tokens, length, body.logprobs)
        return await self._answer(request, engine, body, asked, is_chat=False)

    async def _chat(self, request: HttpRequest) -> Response:
        engine = self._worker.ready_engine()
        body = await bodies.read(request, ChatBody, self._max_body)
        form = body.response_format
        others = {
            "tools": body.tools,
            "functions": body.functions,
            "response_format": form and form.type != "text",
        }
        self._check(body, others)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
        tokens = await asyncio.to_thread(_chat_prompt, engine, body)
        length = body.max_completion_tokens or body.max_tokens or _chat_length(engine, len(tokens))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        asked = _request(engine, body, tokens, length, logprobs)
        return await self._answer(request, engine, body, asked, is_chat=True)

    async def _answer(
        self,
        request: HttpRequest,
        engine: Engine,
        body: Generation,
        asked: Request,
        *,
        is_chat: bool,
    ) -> Response:
        ticket = self._worker.submit(generation(asked, self._metrics))
        try:
            handle = await anext(ticket)
            answer = Answer(
                handle,
                self._name,
                engine.model.tokenizer,
                is_chat=is_chat,
                wants_usage=body.wants_usage,
            )
            if not body.stream:
                return JSONResponse(answer.whole(await collected(request, ticket)))
        except BaseException:
            ticket.cancel()
            raise
        return EventStream(
            ticket,
            render=answer.chunks,
            fail=lambda error: frame(error.openai()),
            end=answer.last,
        )

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise ApiError(
                404,
                "there is no such model here",
                f"the model is {self._name}",
                param="model",
                code="model_not_found",
            )

    def _check(self, body: Generation, others: dict[str, Any]) -> None:
        """Refuses what would be answered otherwise than it is meant."""
        if body.model is not None:
            self._check_name(body.model)
        unlike_one = {"n": body.n, "best_of": others.pop("best_of", None)}
        refused = [name for name, value in unlike_one.items() if value not in (None, 1)]
        others |= {
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "logit_bias": body.logit_bias,
        }
        refused += [name for name, value in others.items() if value]
        if refused:
            fix = "repetition_penalty" if refused[0].endswith("_penalty") else "leaving it out"
            what = f"this server doesn't do what {refused[0]} asks for"
            raise ApiError(400, what, fix=fix, param=refused[0], code="unsupported_parameter")


async def collected(request: HttpRequest, ticket: Ticket) -> list[Any]:
    """Everything that a job tells; it is cancelled if the client goes."""

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue
        ticket.cancel()

    gone = asyncio.create_task(until_gone())
    try:
        events = [event async for event in ticket]
    finally:
        gone.cancel()
    if not events:  # the client has gone, and nobody sees this
        raise ApiError(400, "the request was cancelled")
    return events


def _completion_prompt(engine: Engine, body: CompletionBody) -> np.ndarray | Sequence[int]:
    from bitttt_jax.inference.prompt import encode_prompt

    prompt: Any = body.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise ApiError(
                400, f"there are {len(prompt)} prompts", "a request takes one", param="prompt"
            )
        prompt = prompt[0]
    return encode_prompt(engine.model.tokenizer, prompt) if isinstance(prompt, str) else prompt


def _chat_prompt(engine: Engine, body: ChatBody) -> np.ndarray:
    from bitttt_jax.inference.prompt import encode_messages

    template = engine.model.chat_template
    if template is None:
        raise ApiError(
            400,
            "this model has no chat template: it was taught no conversations",
            fix="/v1/completions, which continues a text",
            param="messages",
            code="no_chat_template",
        )
    role: Callable[[str], str] = lambda name: "system" if name == "developer" else name
    messages = [{"role": role(m.role), "content": m.text} for m in body.messages]
    return encode_messages(engine.model.tokenizer, template, messages)


def _chat_length(engine: Engine, prompt: int) -> int:
    """Most tokens of a reply where none are given: as many as fit, within reason."""
    if engine.limit is None:
        return _CHAT_TOKENS
    left = engine.limit - prompt
    return min(left if left > 0 else engine.limit // 4, _CHAT_TOKENS)


def _request(
    engine: Engine,
    body: Generation,
    tokens: np.ndarray | Sequence[int],
    max_tokens: int,
    logprobs: int | None,
) -> Request:
    from bitttt_jax.inference.requests import Request
    from bitttt_jax.inference.sampling import SamplingConfig

    return Request(
        tokens,
        max_tokens,
        SamplingConfig(**body.values()),
        seed=body.seed_or_any(),
        stop=body.stops,
        stop_ids=engine.model.tokenizer.stop_ids,
        logprobs=logprobs,
    )

from __future__ import annotations

import numpy as np
import pytest

from bitttt_jax.errors import DataError
from bitttt_jax.inference.conversation import Conversation
from bitttt_jax.inference.dialogue import Dialogue
from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.requests import Handle, Request
from tests.inference import samples

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def dialogue(
    template: str | None = TEMPLATE, name: str = "ttt_linear", context: int | None = None
) -> tuple[Dialogue, Engine]:
    model = samples.model(name)
    conversation = Conversation.of(model.tokenizer, template)
    found = Dialogue(conversation, model.config, context, model.config.uses_ttt)
    return found, Engine(model)


def answer(found: Dialogue, engine: Engine, text: str, **values: object) -> Handle:
    tokens, _ = found.ask(text, 6)
    values = {"max_tokens": 6, "sampling": samples.GREEDY} | values
    handle = engine.run([Request(tokens, **values)])[0]  # type: ignore[arg-type]
    found.end(handle, handle.result().text)
    return handle


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_the_next_turn_goes_on_in_the_tokens_that_were_written(template: str | None):
    found, engine = dialogue(template)
    first = answer(found, engine, "one")  # bytes that are no text, which would be encoded otherwise
    tokens, _ = found.ask("two", 6)
    written = [*first.prompt_T, *first.tokens]
    between = b"\n[u]two\n[a]" if template else b"two"
    assert tokens.tolist() == [*written, *between]


def test_after_a_stop_string_all_is_written_anew():
    found, engine = dialogue()
    text = answer(found, engine, "one", max_tokens=30).result().text
    found, engine = dialogue()
    handle = answer(found, engine, "one", max_tokens=30, stop=(text[8:10],))
    assert handle.has_read_beyond_its_end
    tokens, _ = found.ask("two", 6)
    assert tokens.tolist() == found.conversation.tokens().tolist()


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_what_is_said_since_the_reply_is_one_turn(template: str | None):
    found, engine = dialogue(template)
    answer(found, engine, "one")
    found.ask("a text", 1)
    certain = found.certain()
    tokens, _ = found.ask("a question", 6)
    between = "\n\n" if template else ""
    assert found.conversation.turns[-1].content == f"a text{between}a question"
    assert len(found.conversation.turns) == 3
    assert np.array_equal(tokens[: len(certain)], certain)
    assert found.conversation.tokenizer.decode(certain).rstrip().endswith("a text")


def test_a_turn_that_can_t_be_taken_isn_t():
    found, _ = dialogue(name="attention", context=40)
    found.ask("short", 6)
    turns = list(found.conversation.turns)
    with pytest.raises(DataError, match="tokens, and 34 fit"):
        found.ask("x" * 40, 6)
    assert found.conversation.turns == turns
    found.ask("more", 6)
    found.retract()
    assert found.conversation.turns == turns

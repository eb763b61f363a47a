from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitttt_jax.data.chat_templates import ChatTemplate
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.inference.conversation import Conversation, Turn

TOKENIZER = Tokenizer.bytes()
TEMPLATE = ChatTemplate(
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def conversation(template: ChatTemplate | None, turns: int) -> Conversation:
    made = Conversation(TOKENIZER, template, "be kind")
    for number in range(turns):
        made.add("assistant" if number % 2 else "user", f"turn {number}")
    return made


def text_of(tokens: np.ndarray) -> str:
    assert tokens[0] == 256
    return TOKENIZER.decode(tokens)


def test_the_template_decides_on_the_text():
    assert text_of(conversation(TEMPLATE, 3).tokens()) == (
        "[system]be kind\n[user]turn 0\n[assistant]turn 1\n[user]turn 2\n[assistant]"
    )


def test_without_a_template_it_is_a_document():
    assert text_of(conversation(None, 3).tokens()) == "be kind\n\nturn 0turn 1turn 2"
    assert text_of(Conversation(TOKENIZER, None).tokens()) == ""


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_the_oldest_turns_are_forgotten(template: ChatTemplate | None):
    whole = conversation(template, 7)
    last = conversation(template, 7)
    last.turns = last.turns[4:]
    assert whole.trim(None)[1] == 0 and len(whole.turns) == 7
    tokens, forgotten = whole.trim(len(last.tokens()))
    assert forgotten == 4 and whole.turns == last.turns
    assert tokens.tolist() == last.tokens().tolist()
    with pytest.raises(DataError, match="and 5 fit before a reply"):
        whole.trim(5)
    assert whole.turns == last.turns


def test_a_file_keeps_it(tmp_path: Path):
    path = tmp_path / "chat.json"
    one = conversation(TEMPLATE, 3)
    one.turns.append(Turn(role="assistant", content='日本 "x"\n\x1b'))
    one.save(path, "some model")
    other = Conversation(TOKENIZER, TEMPLATE)
    assert other.load(path).model == "some model"
    assert other == one
    with pytest.raises(DataError, match="can't be written"):
        one.save(tmp_path / "no" / "chat.json", "some model")
    one.add("user", "half a pair \udc80")
    with pytest.raises(DataError, match="can't be written"):
        one.save(path, "some model")
    assert other.load(path).model == "some model"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"format": "bitttt-chat", "version": 2, "model": "", "system": "", "turns": []}',
        b'{"model": "", "system": "", "turns": [{"role": "system", "content": ""}]}',
        b'{"model": "", "system": "", "turns": [{"role": "user", "content": 3}]}',
        b'{"model": "", "system": "", "turns": [], "more": 1}',
        b'{"model": "", "system": "", "turns": [], "tokens": [4294967296]}',
    ],
)
def test_damaged_files_change_nothing(tmp_path: Path, content: bytes):
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    made = conversation(TEMPLATE, 2)
    with pytest.raises(DataError, match=r"chat\.json isn't a saved chat"):
        made.load(path)
    with pytest.raises(DataError, match=r"nowhere can't be read"):
        made.load(tmp_path / "nowhere")
    assert made == conversation(TEMPLATE, 2)


def test_what_is_saved_is_readable(tmp_path: Path):
    conversation(None, 1).save(tmp_path / "chat.json", "m")
    assert json.loads((tmp_path / "chat.json").read_text()) == {
        "format": "bitttt-chat",
        "version": 1,
        "model": "m",
        "system": "be kind",
        "turns": [{"role": "user", "content": "turn 0"}],
    }


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_what_follows_a_reply(template: ChatTemplate | None):
    """Before it, the reply and this together are the whole."""
    made = conversation(template, 3)
    before = Conversation(TOKENIZER, template, made.system, made.turns[:1]).tokens()
    after = made.after_reply()
    assert after is not None
    parts = [*before, *b"turn 1", *after]
    assert parts == made.tokens().tolist()
    made.turns.pop()
    assert made.after_reply() is None

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitttt_jax.config import CleanConfig
from bitttt_jax.data.chat_templates import BEGIN, ROLES
from bitttt_jax.data.documents import Document
from bitttt_jax.data.preview import preview_cleaning, preview_messages
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ConfigError, DataError
from tests.data.chats import make_chats, tokens_by_hand

CHAT = Document(
    "x",
    "a.jsonl:1",
    0,
    (
        {"role": "system", "content": "Be é."},
        {"role": "user", "content": f"<|end|>{BEGIN} user"},
        {"role": "assistant", "content": "Yes 🎉"},
    ),
)


def test_segments_say_who_wrote_what_and_what_is_learned() -> None:
    (found,) = preview_messages([Document("text", "t", 0), CHAT], "")
    assert (found["origin"], found["problem"]) == ("a.jsonl:1", "")
    assert [(s["role"], s["learned"], s["text"]) for s in found["segments"]] == [
        ("template", False, "<|endoftext|><|system|>\n"),
        ("system", False, "Be é."),
        ("template", False, "<|end|>\n<|user|>\n"),
        ("user", False, "<|end|> user"),
        ("template", False, "<|end|>\n<|assistant|>\n"),
        ("assistant", True, "Yes 🎉"),
        ("template", True, "<|end|>"),
        ("template", False, "\n"),
    ]


@pytest.mark.parametrize("template", ["", "roles", ROLES])
def test_what_is_learned_is_what_masks_count(template: str) -> None:
    chats = make_chats(10)
    documents = [Document("x", "x", 0, tuple(messages)) for messages in chats]
    tokenizer = Tokenizer.bytes(["<|system|>", "<|assistant|>", "<|user|>", "<|end|>"])
    for messages, found in zip(chats, preview_messages(documents, template), strict=True):
        ids, mask = tokens_by_hand(messages)
        learned = [
            tokenizer.token(t) if t > 256 else t
            for t, flag in zip(ids[1:], mask, strict=False)
            if flag
        ]
        expected = b"".join(bytes([t]) if isinstance(t, int) else str(t).encode() for t in learned)
        assert "".join(s["text"] for s in found["segments"] if s["learned"]).encode() == expected


def test_other_templates_and_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}<|fin|>{% endfor %}")
    (found,) = preview_messages([CHAT], str(path))
    assert [s["text"] for s in found["segments"] if s["learned"]] == ["Yes 🎉", "<|fin|>"]
    given = Tokenizer.bytes(["<|im_start|>", "<|im_end|>"])
    (found,) = preview_messages([CHAT], "", given)
    assert found["segments"][0]["text"] == "<|endoftext|><|im_start|>system\n"
    with pytest.raises(DataError, match="has no token"):
        preview_messages([CHAT], "roles", given)
    with pytest.raises(ConfigError, match="no chat template 'nowhere'"):
        preview_messages([CHAT], "nowhere")


def test_conversations_that_cannot_be_written() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (found,) = preview_messages([CHAT], template + ROLES)
    assert found["segments"] == [] and "no system" in found["problem"]


def test_cleaning() -> None:
    config = CleanConfig(whitespace=True, duplicates=True, min_characters=2)
    texts = [Document(text, f"{n}", 0) for n, text in enumerate(["ab ", "ab", "x"])]
    assert preview_cleaning(texts, config) == [
        {"origin": "0", "before": "ab ", "after": "ab", "changes": ["whitespace"], "removed": ""},
        {"origin": "1", "before": "ab", "after": "ab", "changes": [], "removed": "duplicate"},
        {
            "origin": "2",
            "before": "x",
            "after": "x",
            "changes": [],
            "removed": "under 2 characters",
        },
    ]


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys, bitttt_jax.data.preview as _; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

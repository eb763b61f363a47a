from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers as library

from bitttt_jax.data.chat_templates import CHATML
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import chat_templates
from bitttt_jax.interop.chat_templates import BITNET_2B4T


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Bytes and a token of ChatML."""
    backend = library.Tokenizer.from_str(Tokenizer.bytes().text)
    backend.add_special_tokens(["<|im_start|>"])
    return Tokenizer(backend.to_str())


def test_template_of_a_gguf_file(tokenizer: Tokenizer) -> None:
    find = chat_templates.from_gguf
    assert find({"tokenizer.chat_template": "x"}, tokenizer) == "x"
    assert find({}, tokenizer) == CHATML
    assert find({}, Tokenizer.bytes()) is None
    assert find({"general.architecture": "bitnet-b1.58"}, Tokenizer.bytes()) == BITNET_2B4T
    wrong = (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Human: ' + "
        "message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}{% endif %}{% endfor %}"
    )
    assert find({"tokenizer.chat_template": wrong}, tokenizer) == BITNET_2B4T
    with pytest.raises(DataError, match=r"tokenizer\.chat_template is no text"):
        find({"tokenizer.chat_template": 7}, tokenizer)


def test_template_of_a_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    find = lambda: chat_templates.from_folder(tmp_path, tokenizer)
    config = lambda template: (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template})
    )
    assert find() == CHATML
    config("one")
    assert find() == "one"
    config([{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}])
    assert find() == "d"
    config([{"name": "tools", "template": "t"}])
    assert find() == "t"
    config(7)
    with pytest.raises(DataError, match="chat_template is no text"):
        find()
    (tmp_path / "chat_template.jinja").write_text("file é", "utf-8")
    assert find() == "file é"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template\.jinja is no chat template"):
        find()

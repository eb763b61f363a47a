from __future__ import annotations

import collections
import json
from typing import Any

import numpy as np
import pytest

from bitttt_jax.data.chat_templates import ROLES, ChatTemplate
from bitttt_jax.data.documents import Document, UnusableDocumentError
from bitttt_jax.data.encoding import Encoded, Encoder
from bitttt_jax.data.tokenizers import Tokenizer
from tests.data.chats import make_chats, tokens_by_hand


def chat(*said: str) -> Document:
    roles = ("user", "assistant") * len(said)
    messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)]
    return Document("\n\n".join(said), "x:1", 0, tuple(messages))


def encode(
    documents: list[Document],
    template: str = ROLES,
    on_error: Any = "fail",
    skipped: collections.Counter[str] | None = None,
) -> list[Encoded | None]:
    tokenizer = Tokenizer.bytes(ChatTemplate(ROLES).special_names)
    skipped = collections.Counter() if skipped is None else skipped
    return list(Encoder(tokenizer, ChatTemplate(template), on_error, skipped).encode(documents))


def test_texts_and_conversations_keep_their_order() -> None:
    text = Document("é", "t", 0)
    first, second, third = encode([text, chat("q", "ré"), text])
    for found in (first, third):
        assert found is not None and found.counted is None
        assert found.tokens_T.tolist() == [256, *"é".encode()] and found.text_bytes == 2
    assert second is not None and second.counted is not None
    ids, learned = tokens_by_hand(list(chat("q", "ré").messages))
    assert second.tokens_T.tolist() == ids
    assert second.counted.mask_T.tolist() == [bool(flag) for flag in learned]
    assert second.counted.text_bytes == 3
    assert second.text_bytes == len("\nq\n\nré\n".encode())


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_those_made_by_hand(seed: int) -> None:
    chats = make_chats(20, seed)
    documents = [Document("x", "x", 0, tuple(messages)) for messages in chats]
    for messages, found in zip(chats, encode(documents), strict=True):
        ids, learned = tokens_by_hand(messages)
        assert found is not None and found.counted is not None
        assert found.tokens_T.tolist() == ids
        assert found.counted.mask_T.astype(int).tolist() == learned
        replies = [m["content"] for m in messages if m["role"] == "assistant"]
        assert found.counted.text_bytes == len("".join(replies).encode())


@pytest.mark.parametrize(
    ("template", "reason", "why"),
    [
        (
            "{{ raise_exception('no') if messages[0].content == 'bad' }}" + ROLES,
            "a conversation that the chat template can't write",
            "refuses this conversation: no",
        ),
        (
            "{% if messages[0].content == 'bad' %}{{ messages[1].content | length }}{% else %}"
            + ROLES
            + "{% endif %}",
            "a conversation that the chat template can't write",
            "generation",
        ),
        (
            "{% if messages[0].content == 'bad' %}{% generation %}{% endgeneration %}{% else %}"
            + ROLES
            + "{% endif %}",
            "nothing to learn",
            "leaves replies out",
        ),
        (
            "{% if messages[0].content == 'bad' %}{{ 'x' * 10**9 }}{% else %}"
            + ROLES
            + "{% endif %}",
            "a conversation that the chat template can't write",
            "memory",
        ),
    ],
)
def test_what_the_template_cannot_write(template: str, reason: str, why: str) -> None:
    documents = [chat("a", "b"), chat("bad", "b"), chat("c", "d")]
    with pytest.raises(UnusableDocumentError, match=why):
        encode(documents, template)
    skipped: collections.Counter[str] = collections.Counter()
    found = encode(documents, template, "skip", skipped)
    assert [item is None for item in found] == [False, True, False]
    assert skipped == {reason: 1}


def test_documents_begin_as_the_tokenizer_wants() -> None:
    for adds_bos in (True, False):
        tokenizer = Tokenizer(Tokenizer.bytes().text, adds_bos=adds_bos)
        encoder = Encoder(tokenizer, None, "fail", collections.Counter())
        (found,) = encoder.encode([Document("ab", "x", 0)])
        assert found is not None
        expected = [256, 97, 98] if adds_bos else [97, 98]
        np.testing.assert_array_equal(found.tokens_T, expected)
        assert found.text_bytes == 2


def test_a_text_of_which_no_token_is_left() -> None:
    content = json.loads(Tokenizer.bytes().text)
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "x"}, "content": ""}
    text = json.dumps(content)
    encoder = Encoder(Tokenizer(text, adds_bos=False), None, "fail", collections.Counter())
    with pytest.raises(UnusableDocumentError, match="x: no tokens"):
        list(encoder.encode([Document("xx", "x", 0)]))

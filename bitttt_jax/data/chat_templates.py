"""Chat templates: from messages to tokens, and which of these an assistant wrote.

A template is a Jinja program from a model's files, or a user's. It runs in a sandbox inside a
process of its own (`template_worker`), so that the worst that a hostile one can do is to be
refused.

A message can't pass for a part of the conversation: before rendering, every string in it is guarded
(`Tokenizer.guard`), so that only names of special tokens that the template itself wrote are encoded
as such, while its text and the messages' are still encoded together, as models were taught.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bitttt_jax.data import template_process
from bitttt_jax.data.tokenizers import GUARD, Tokenizer
from bitttt_jax.errors import DataError

Message = Mapping[str, str]
"""`role` (`system`, `user` or `assistant`) and `content`."""

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
+ '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Of most models whose vocabulary has `<|im_start|>`."""

ROLES = """\
{% for message in messages %}\
{% if message['role'] == 'system' %}{{ '<|system|>' }}\
{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}\
{% else %}{{ '<|user|>' }}{% endif %}\
{{ '\\n' + message['content'] + '<|end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' + '\\n' }}{% endif %}"""
"""A token for each role and one that ends a message: what our own models are taught."""

SHIPPED = {"roles": ROLES, "chatml": CHATML}
"""Templates by the names that `data.chat_template` knows."""

# As GUARD, characters that no text has: around what the model is to learn to write. Templates that
# say so themselves do it with {% generation %}, whose body the worker puts between them.
BEGIN, END = "\ufdd1", "\ufdd2"
_MARKS = f"[{BEGIN}{END}]"
# Around the messages of a role, to be shown.
_ROLE_BEGIN, _ROLE_END = "\ufdd3", "\ufdd4"
_ROLE_MARKS = f"[{_ROLE_BEGIN}{_ROLE_END}]"
_NO_MARKS = dict.fromkeys(map(ord, BEGIN + END + _ROLE_BEGIN + _ROLE_END))

_SPECIAL_NAME = re.compile(r"<\|[^|<>\s]{1,64}\|>")
_MOST_CHARS = 1 << 20
_SAMPLE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A format of conversations."""

    text: str
    """Jinja."""

    @property
    def special_names(self) -> tuple[str, ...]:
        """Names like `<|user|>` that it writes, in their order: tokens where it is taught."""
        return tuple(dict.fromkeys(_SPECIAL_NAME.findall(self.text)))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        bos_token: str = "",
        eos_token: str = "",
    ) -> str:
        """The text of a conversation.

        Args:
          messages: from the first to the last.
          add_generation_prompt: end it with what begins a reply.
          bos_token: the text of the beginning-of-document token, which many templates write.
          eos_token: likewise, at the end of a document.

        Raises:
          DataError: the template refuses the messages, is wrong, or takes too much time or memory.
        """
        return self._render(messages, add_generation_prompt, bos_token, eos_token).translate(
            _NO_MARKS
        )

    def _render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        bos_token: str,
        eos_token: str,
    ) -> str:
        if len(self.text) > _MOST_CHARS:
            raise DataError(f"the chat template has {len(self.text)} characters", "too many")
        variables = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos_token,
            "eos_token": eos_token,
            "tools": None,
            "documents": None,
        }
        answer = template_process.ask(self.text, variables)
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise DataError("the chat template refuses this conversation", answer["refused"])
        raise DataError("the chat template can't be rendered", answer["failed"])

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
    ) -> np.ndarray:
        """Tokens `[T]` (int32) of a conversation.

        Begins with the beginning-of-document token where the template or the tokenizer adds one.

        Raises:
          DataError: as `render` does, or a message has half a surrogate pair.
        """
        return self._encode(tokenizer, messages, self._renderer(tokenizer, add_generation_prompt))[
            0
        ]

    def encode_learned(
        self, tokenizer: Tokenizer, messages: Sequence[Message]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[T]` (int32) of a whole conversation, and which of them a model is to learn.

        Learned are the tokens that have a character of what an assistant says, or of the body of a
        `{% generation %}` in the template, and the token that ends the reply, where only white
        space stands between.

        Returns:
          The same tokens as `encode` without a generation prompt, and bool `[T]`.

        Raises:
          DataError: as `encode` does, or the template changes replies beyond recognition.
        """
        render = self._renderer(tokenizer, add_generation_prompt=False)
        ids, learned_T = self._encode(tokenizer, messages, lambda given: _marked(render, given))
        for index in np.flatnonzero(learned_T[:-1] & ~learned_T[1:]):
            end = index + 1
            while end < len(ids) - 1 and tokenizer.decode(ids[end : end + 1]).isspace():
                end += 1
            if ids[end] in tokenizer.stop_ids:
                learned_T[index + 1 : end + 1] = True
        return ids, learned_T

    def spoken_by(self, tokenizer: Tokenizer, messages: Sequence[Message], role: str) -> np.ndarray:
        """Which tokens of `encode_learned` have a character of a role's messages, bool `[T]`.

        Raises:
          DataError: as `encode_learned` does.
        """
        render = self._renderer(tokenizer, add_generation_prompt=False)
        marks = (_ROLE_BEGIN, _ROLE_END)
        plain = lambda given: render(given).translate(_NO_MARKS)
        mark = lambda given: _with_marks(render, given, plain(given), role, marks)
        return self._encode(tokenizer, messages, mark, _ROLE_MARKS)[1]

    def end_of_reply(self, tokenizer: Tokenizer) -> int | None:
        """The special token by which a reply ends; None if the template writes none there.

        Raises:
          DataError: the template can't render a question and a reply.
        """
        ids, learned_T = self.encode_learned(tokenizer, _SAMPLE)
        last = int(np.flatnonzero(learned_T)[-1]) if learned_T.any() else len(ids)
        for id_ in ids[last + 1 :]:
            if len(tokenizer.only_added(np.array([id_]))):
                return int(id_)
            if not tokenizer.decode([id_]).isspace():
                break
        return int(ids[last]) if last < len(ids) and ids[last] in tokenizer.stop_ids else None

    def _renderer(
        self, tokenizer: Tokenizer, add_generation_prompt: bool
    ) -> Callable[[Sequence[Message]], str]:
        return functools.partial(
            self._render,
            add_generation_prompt=add_generation_prompt,
            bos_token=tokenizer.token(tokenizer.bos_id) or "",
            eos_token=tokenizer.token(tokenizer.eos_id) or "",
        )

    def _encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        render: Callable[[Sequence[Message]], str],
        marks: str = _MARKS,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[T]`, and which of them have a character between marks."""
        guarded = _guarded(tokenizer, messages, edges=True)
        safest = render(guarded)
        ids, marked_T = _encode(tokenizer, safest, marks)
        # The names are guarded in both. The further guards rule out that one is put together from a
        # message and what stands beside it, but can hide from the template what it looks for in a
        # message, such as the end of its thoughts: then the other text is used, where the template
        # wrote the same special tokens.
        less_guarded = _guarded(tokenizer, messages, edges=False)
        if less_guarded != guarded:
            text = render(less_guarded)
            if text.replace(GUARD, "") != safest.replace(GUARD, ""):
                others, others_marked_T = _encode(tokenizer, text, marks)
                if np.array_equal(tokenizer.only_added(others), tokenizer.only_added(ids)):
                    ids, marked_T = others, others_marked_T
        if tokenizer.adds_bos and ids[:1].tolist() != [tokenizer.bos_id]:
            ids = np.concatenate([np.array([tokenizer.bos_id], np.int32), ids])
            marked_T = np.concatenate([[False], marked_T])
        return ids, marked_T


def predictions(tokenizer: Tokenizer, ids: np.ndarray, learned_T: np.ndarray) -> np.ndarray:
    """Which predictions count, bool `[T]`: at each token, whether the next one is to be learned.

    After the last token that is the implied end of the document, to be learned where the text ends
    in a reply that nothing else has ended.
    """
    is_open = len(ids) > 0 and bool(learned_T[-1]) and ids[-1] not in tokenizer.stop_ids
    return np.append(learned_T[1:], is_open)


def with_end_of_reply(tokenizer: Tokenizer, template: ChatTemplate) -> Tokenizer:
    """A tokenizer that knows by which token the replies of a template end.

    Raises:
      DataError: the template can't render a question and a reply.
    """
    end = template.end_of_reply(tokenizer)
    if end is None or end in tokenizer.stop_ids:
        return tokenizer
    return Tokenizer(tokenizer.text, stop_ids=(*tokenizer.stop_ids, end))


def _marked(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str:
    """The text of a conversation with marks around what is to be learned."""
    text = render(messages)
    if BEGIN in text:  # {% generation %}
        return text
    return _with_marks(render, messages, text, "assistant", (BEGIN, END))


def _with_marks(
    render: Callable[[Sequence[Message]], str],
    messages: Sequence[Message],
    text: str,
    role: str,
    marks: tuple[str, str],
) -> str:
    """The text of a conversation with marks around the messages of a role.

    Args:
      render: makes it of messages.
      messages: the conversation.
      text: what it is without marks.
      role: whose messages.
      marks: what stands before and after each.

    Raises:
      DataError: the marks get lost, or change the text.
    """
    due = list(marks) * sum(message["role"] == role for message in messages)
    for within_spaces in (False, True):  # templates that trim look for spaces outside the marks
        marked = render([_mark(message, role, marks, within_spaces) for message in messages])
        found = [character for character in marked if character in marks]
        if found == due and marked.translate(_NO_MARKS) == text:
            return marked
    raise DataError(
        f"the chat template changes what the {role} says: it can't be told where that is",
        fix="{% generation %} before and {% endgeneration %} after what is to be learned",
    )


def _mark(message: Message, role: str, marks: tuple[str, str], within_spaces: bool) -> Message:
    if message["role"] != role:
        return message
    content = message["content"]
    start = len(content) - len(content.lstrip()) if within_spaces else 0
    end = max(len(content.rstrip()), start) if within_spaces else len(content)
    begin, finish = marks
    marked = f"{content[:start]}{begin}{content[start:end]}{finish}{content[end:]}"
    return {**message, "content": marked}


def _guarded(
    tokenizer: Tokenizer, messages: Sequence[Message], *, edges: bool
) -> list[dict[str, str]]:
    return [
        {
            key: tokenizer.guard(value.translate(_NO_MARKS), edges=edges)
            for key, value in message.items()
        }
        for message in messages
    ]


def _encode(tokenizer: Tokenizer, marked: str, marks: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens `[T]` of a text, and which of them have a character between marks.

    Args:
      tokenizer: makes the tokens.
      marked: the text.
      marks: a pattern of the two characters that switch between the one and the other.
    """
    try:
        marked.encode()
    except UnicodeEncodeError as error:
        raise DataError("a message isn't valid UTF-8", str(error)) from None
    pieces = [piece.translate(_NO_MARKS) for piece in re.split(marks, marked)]
    ids, spans_T2 = tokenizer.encode_with_special("".join(pieces))
    if len(pieces) == 1:
        return ids, np.zeros(len(ids), bool)
    is_marked = np.arange(len(pieces)) % 2 == 1
    marked_before = np.concatenate([[0], np.cumsum(np.repeat(is_marked, list(map(len, pieces))))])
    return ids, marked_before[spans_T2[:, 1]] > marked_before[spans_T2[:, 0]]

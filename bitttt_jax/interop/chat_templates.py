"""Chat templates: from messages to tokens, in the format that a model was taught.

A template is a Jinja program from the model's files. It runs in a sandbox inside a process of its
own (`template_worker`), so that the worst that a hostile one can do is to be refused.

A message can't pass for a part of the conversation: before rendering, every string in it is guarded
(`Tokenizer.guard`), so that only names of special tokens that the template itself wrote are encoded
as such, while its text and the messages' are still encoded together, as models were taught.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitttt_jax.data.tokenizers import GUARD, Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import tokenizers

Message = Mapping[str, str]
"""`role` (`system`, `user` or `assistant`) and `content`."""

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
+ '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""Of most models whose vocabulary has `<|im_start|>`."""

BITNET_2B4T = """\
{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' \
+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"""
"""The published format of BitNet b1.58 2B4T; its generation prompt ends in a space."""

# Only the template in the first official GGUF files of 2B4T has this; the model wasn't taught it.
_WRONG_2B4T = "BITNETAssistant"

_WORKER = Path(__file__).with_name("template_worker.py")
_MOST_CHARS = 1 << 20
_SECONDS = 5.0  # of processor time, to render one


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A format of conversations."""

    text: str
    """Jinja."""

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
        answer = _worker().ask({"template": self.text, "variables": variables, "seconds": _SECONDS})
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise DataError(
                "the model's chat template refuses this conversation", answer["refused"]
            )
        raise DataError("the model's chat template can't be rendered", answer["failed"])

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
        render = functools.partial(
            self.render,
            add_generation_prompt=add_generation_prompt,
            bos_token=tokenizer.token(tokenizer.bos_id) or "",
            eos_token=tokenizer.token(tokenizer.eos_id) or "",
        )
        safest = render(_guarded(tokenizer, messages, edges=True))
        text = render(_guarded(tokenizer, messages, edges=False))
        # The names are guarded in both. The further guards rule out that one is put together from a
        # message and what stands beside it, but can hide from the template what it looks for in a
        # message, such as the end of its thoughts: then the other text is used, where the template
        # wrote the same special tokens.
        ids = _encode(tokenizer, safest)
        if text.replace(GUARD, "") != safest.replace(GUARD, ""):
            others = _encode(tokenizer, text)
            if np.array_equal(tokenizer.only_added(others), tokenizer.only_added(ids)):
                ids = others
        if tokenizer.adds_bos and ids[:1].tolist() != [tokenizer.bos_id]:
            ids = np.concatenate([np.array([tokenizer.bos_id], np.int32), ids])
        return ids


def from_gguf(metadata: Mapping[str, object], tokenizer: Tokenizer) -> str | None:
    """The chat template of a GGUF file; None where it isn't known.

    The wrong one of the official 2B4T file is replaced by the published format.

    Raises:
      DataError: it is no text.
    """
    text = metadata.get("tokenizer.chat_template")
    if text is None:
        is_bitnet = str(metadata.get("general.architecture")).startswith("bitnet-")
        return BITNET_2B4T if is_bitnet else default(tokenizer)
    if not isinstance(text, str):
        raise DataError("tokenizer.chat_template is no text", f"but {type(text).__name__}")
    return BITNET_2B4T if _WRONG_2B4T in text else text


def from_folder(folder: Path, tokenizer: Tokenizer) -> str | None:
    """The chat template of a Hugging Face folder; None where it isn't known.

    Of several named ones it is `default`.

    Raises:
      DataError: a file can't be read, or holds something else.
    """
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        try:
            return tokenizers.read_bytes(own_file).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{own_file} is no chat template", f"not UTF-8: {error}") from None
    path = folder / "tokenizer_config.json"
    found = tokenizers.read_config(path).get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default", next(iter(named.values()), None))
    if found is not None and not isinstance(found, str):
        raise DataError(f"{path}: chat_template is no text", f"but {type(found).__name__}")
    return default(tokenizer) if found is None else found


def default(tokenizer: Tokenizer) -> str | None:
    """The template that a vocabulary speaks for: ChatML's, or none."""
    return CHATML if tokenizer.token_id("<|im_start|>") is not None else None


def _guarded(
    tokenizer: Tokenizer, messages: Sequence[Message], *, edges: bool
) -> list[dict[str, str]]:
    return [
        {key: tokenizer.guard(value, edges=edges) for key, value in message.items()}
        for message in messages
    ]


def _encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError("a message isn't valid UTF-8", str(error)) from None
    return tokenizer.encode_with_special(text)


class _Worker:
    """The process that renders templates; started again after a request that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """What `template_worker.answer` returns."""
        with self._lock:
            process = self._process = self._process or self._start()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:  # Ctrl-C: its answer must not be taken for the next one's
                self.close()
                raise
            if line.endswith("\n"):
                answer: dict[str, str] = json.loads(line)
                return answer
            return {"failed": self._how_it_ended(process)}

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        # -P: the modules beside the script are no libraries. A session of its own: Ctrl-C at the
        # terminal is for the program that asks.
        return subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def _how_it_ended(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        self.close()
        if code == -signal.SIGVTALRM:
            return f"it takes more than {_SECONDS:g} seconds"
        return f"the process that renders it ended with {code}"


@functools.cache
def _worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.close)
    return worker

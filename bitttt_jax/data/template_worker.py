"""A process of its own that renders chat templates, which are programs of strangers.

Run by `template_process`, one JSON object a line in and out. The sandbox keeps a template from
everything outside it; the process bounds what no sandbox bounds: the memory, by its limit, and the
time of every request, by a timer that ends it whatever it is doing.
"""

from __future__ import annotations

import datetime
import functools
import json
import resource
import signal
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

MEMORY_BYTES = 512 << 20
OUTPUT_CHARS = 8 << 20
# `BEGIN` and `END` of `chat_templates`, which this script, without the package, can't import.
MARKS = ("\ufdd1", "\ufdd2")


class Refused(Exception):
    """The template's own `raise_exception`: its message is for the user."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, by which templates mark replies for training: its body between marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)], lineno=lineno) for mark in MARKS
        )
        return jinja2.nodes.Scope([begin, *body, end], lineno=lineno)


class Namespace(jinja2.utils.Namespace):
    """Variables that loops may set; names with an underscore in front would lead out of Jinja."""

    def __init__(self, /, **values: Any):
        for name in values:
            _check_name(name)
        super().__init__(**values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no {name}")


@functools.cache
def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The sandbox, with what templates on the Hugging Face Hub expect."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, jinja2.ext.loopcontrols],
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    made.globals["namespace"] = Namespace
    made.globals["dict"] = lambda *items, **named: dict(*items, **named)
    return made


def refuse(message: str) -> NoReturn:
    """What templates call `raise_exception`."""
    raise Refused(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes what HTML would read as tags."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=4)
def compiled(text: str) -> jinja2.Template:
    """A template, ready to render."""
    return environment().from_string(text)


def render(text: str, variables: dict[str, Any]) -> str:
    """The text that a template makes of its variables."""
    pieces, chars = [], 0
    for piece in compiled(text).generate(**variables):
        pieces.append(piece)
        chars += len(piece)
        if chars > OUTPUT_CHARS:
            why = f"its text has more than {OUTPUT_CHARS} characters"
            raise jinja2.exceptions.TemplateRuntimeError(why)
    return "".join(pieces)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """What a request comes to: `text`, or why there is none."""
    try:
        return {"text": render(request["template"], request["variables"])}
    except Refused as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"failed": f"it needs more than {MEMORY_BYTES >> 20} MiB of memory"}
    except Exception as error:  # anything can be wrong in a stranger's program
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    """Answers requests (`template`, `variables`, `seconds`) until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        # Processor time: when it runs out, the process ends.
        signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"])
        result = json.dumps(answer(request))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(result, flush=True)


if __name__ == "__main__":
    main()

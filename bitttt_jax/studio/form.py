"""The form's side of a configuration: fields drawn from the schema, values, and the command.

A form's values are the overrides of a command line with their types kept: what the form accepts,
the command line accepts, for it is the same parser that reads both.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitttt_jax.config import SourceConfig, TrainConfig
from bitttt_jax.config_loading import (
    FLAG_PREFIX,
    apply_overrides,
    difference,
    flatten,
    load_config,
    preset_names,
    to_json,
)
from bitttt_jax.errors import ConfigError
from bitttt_jax.studio.paths import confine
from bitttt_jax.train_flags import parse_train_flags, split_overrides

Values = dict[str, Any]
Problem = dict[str, Any]

_SOURCES = "data.sources"
_SOURCE_KEY = re.compile(r"data\.sources\.(\d+)\.(\w+)")
# Names without a group are ordinary words, too: they count before a value only.
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+|[A-Za-z_]\w*(?==)")
_PROGRAMS = (
    ("bitttt", "train"),
    ("python", "-m", "bitttt_jax.train"),
    ("python", "-m", "bitttt_jax", "train"),
)
# They would print, or read other files than a configuration.
_REFUSED_FLAGS = ("help", "h", "helpfull", "helpshort", "print_config", "flagfile", "undefok")


@dataclasses.dataclass(frozen=True)
class Checked:
    """What became of a form's values."""

    preset: str
    config: TrainConfig
    """With all values that could be taken."""
    problems: list[Problem]
    """`key` (or None) and `message` of each."""

    @property
    def values(self) -> Values:
        """What differs from the preset."""
        return values_between(load_config(self.preset), self.config)

    def as_json(self) -> dict[str, Any]:
        """The answer to a check."""
        preset = load_config(self.preset)
        arguments = command_arguments(self.preset, self.config)
        changed = difference(preset, self.config)
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "preset": self.preset,
            "values": self.values,
            "argv": ["bitttt", *arguments],
            "command": shlex.join(["bitttt", *arguments]),
            "differences": [
                {"key": key, "value": plain(value), "preset_value": plain(before)}
                for key, before, value in changed
            ],
            "config": json.loads(to_json(self.config)),
        }


def check_values(preset: str, values: Mapping[str, Any], roots: Sequence[Path]) -> Checked:
    """Checks a form's values as the command line would, and finds all that is wrong.

    Args:
      preset: a preset's name, or a config.json below one of the roots.
      values: by dotted key.
      roots: folders that configurations may be read from.

    Raises:
      ConfigError: there is no such preset.
    """
    base = _load(preset, roots)
    left = dict(values)
    problems: list[Problem] = []
    while True:
        try:
            return Checked(preset, apply_overrides(base, overrides(left)), problems)
        except ConfigError as error:
            # The checks of the classes end at the first fault: without it, look for the next.
            known = flatten(base)
            found = [
                {"key": _key_in(line, left, known), "message": line}
                for line in error.what.splitlines()
            ]
            problems += found
            wrong = {problem["key"] for problem in found} & left.keys()
            left = {key: value for key, value in left.items() if key not in wrong}
            if not wrong:  # whatever it is, it can't be told from the others
                return Checked(preset, base, problems)


def check_command(command: str, roots: Sequence[Path]) -> Checked:
    """Reads a pasted command line.

    Args:
      command: `bitttt train ...` or `python -m bitttt_jax.train ...`, on one line or several.
      roots: folders that configurations may be read from.

    Raises:
      ConfigError: it isn't one, or what it says besides `--config.KEY=VALUE` is wrong.
    """
    given, flags = split_overrides(_arguments(command))
    _check_flags(flags)
    for spec in _specs(flags):
        _load(spec, roots)
    # The flags as a run would read them; the values apart, to name what is wrong with each.
    parsed = parse_train_flags(flags)
    values = values_between(parsed.preset, parsed.config)
    for override in given:
        key, equals, text = override.removeprefix(FLAG_PREFIX).partition("=")
        if not equals:
            raise ConfigError(f"{override} lacks its =VALUE")
        if key == _SOURCES:
            values = {k: v for k, v in values.items() if not k.startswith(_SOURCES)}
        values[key] = text
    return check_values(parsed.spec, values, roots)


def command_arguments(preset: str, config: TrainConfig) -> list[str]:
    """`train` and its flags for a configuration, as few of them as say all of it."""
    values = values_between(load_config(preset), config)
    return ["train", f"--config={preset}", *overrides(values)]


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Values as `--config.KEY=VALUE`, in an order in which they can be applied."""
    return [f"{FLAG_PREFIX}{key}={_text(values[key])}" for key in sorted(values, key=_order)]


def values_between(preset: TrainConfig, config: TrainConfig) -> Values:
    """The values that turn one configuration into another."""
    values: Values = {}
    if len(config.data.sources) < len(preset.data.sources):
        # Sources can't be taken away one by one: the list is begun anew.
        paths = [source.path.partition(",")[0] for source in config.data.sources]
        values[_SOURCES] = paths
        sources = tuple(SourceConfig(path=path) for path in paths)
        preset = dataclasses.replace(preset, data=dataclasses.replace(preset.data, sources=sources))
    fresh = {field.name: field.default for field in dataclasses.fields(SourceConfig)}
    there = len(preset.data.sources)
    for key, _, value in difference(preset, config):
        source = _SOURCE_KEY.fullmatch(key)
        is_new = source is not None and int(source[1]) >= there
        if is_new and source is not None and source[2] != "path" and value == fresh.get(source[2]):
            continue
        values[key] = plain(value)
    return values


def nearest_preset(config: TrainConfig) -> str:
    """The preset that a configuration was made from, or that differs least from it."""
    names = preset_names()
    if config.name in names:
        return config.name
    return min(names, key=lambda name: len(difference(load_config(name), config)))


def plain(value: Any) -> Any:
    """A configuration's value in JSON."""
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def _load(spec: str, roots: Sequence[Path]) -> TrainConfig:
    if spec.endswith(".py"):
        raise ConfigError(
            f"the studio doesn't run {spec}",
            "it could do anything here",
            f"bitttt train --config={spec} --print_config > my.json in a terminal, in a folder of "
            "the studio's, and --config=my.json here",
        )
    if spec.endswith(".json"):
        confine(spec, roots)
    return load_config(spec)


def _arguments(command: str) -> list[str]:
    try:
        words = shlex.split(command.replace("\\\r\n", " ").replace("\\\n", " ").strip(" $\n\t"))
    except ValueError as error:
        raise ConfigError("the command can't be read", str(error)) from None
    while words and re.fullmatch(r"\w+=.*", words[0]):  # variables before the command
        words.pop(0)
    names = [re.sub(r"^python[\d.]*(\.exe)?$", "python", Path(word).name) for word in words[:4]]
    for program in _PROGRAMS:
        if tuple(names[: len(program)]) == program:
            return words[len(program) :]
    raise ConfigError(
        f"{shlex.join(words[:4])!r:.200} isn't a training command",
        fix="bitttt train --config=quickstart --config.optim.lr=1e-3",
    )


def _check_flags(flags: Sequence[str]) -> None:
    """Refuses flags of the launcher that print, or read files."""
    for word in flags:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in _REFUSED_FLAGS:
            raise ConfigError(f"--{name} isn't for the form")


def _specs(flags: Sequence[str]) -> list[str]:
    """All that `--config` names, however it is written."""
    found = []
    for word, after in itertools.pairwise([*flags, ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "config":
            found.append(value if equals else after)
    return found


def _order(key: str) -> tuple[int, int, str]:
    source = _SOURCE_KEY.fullmatch(key)
    if source:
        return 1, int(source[1]) if len(source[1]) < 9 else 0, key
    return (0 if key == _SOURCES else 2), 0, key


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_text(item) for item in value)
    return value if isinstance(value, str) else repr(value)


def _key_in(message: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """The key that a message is about, a changed one rather than one that it disagrees with."""
    mentioned = list(_mentioned(message, values, known))
    return next((key for key in mentioned if key in values), next(iter(mentioned), None))


def _mentioned(message: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Keys in a message, in its order."""
    sources = {_SOURCE_KEY.sub(r"data.sources.\2", key): key for key in values}
    for found in _NAME.finditer(message.partition(" (did you mean")[0]):
        key = found[0].removeprefix("config.").rstrip(".")
        item = key.rpartition(".")[0]  # of a list's item, which is told by its number
        for name in (key, sources.get(key, key), item):
            if name in values or name in known:
                yield name
                break

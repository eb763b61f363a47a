"""Configurations from outside: presets, files and flags in, JSON and help out.

Flags, config.json and forms are checked by the same pydantic validator, so that a value is
accepted or refused with the same words wherever it comes from.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from bitttt_jax.config import SourceConfig, TrainConfig
from bitttt_jax.config.model import VOCAB_MULTIPLE
from bitttt_jax.errors import BittttError, ConfigError, did_you_mean

FLAG_PREFIX = "--config."


@dataclasses.dataclass(frozen=True)
class Key:
    """One configuration key as help and forms show it."""

    name: str
    """Dotted path, such as `optim.lr`."""
    type: str
    """`INT`, `FLOAT`, `TEXT`, `True|False`, or the choices."""
    value: Any
    """Value in the described configuration."""
    help: str
    """The field's docstring."""

    @property
    def group(self) -> str:
        """All but the last part of the name; empty at the top."""
        return self.name.rpartition(".")[0]


def load_config(spec: str) -> TrainConfig:
    """Loads what `--config` names.

    Args:
      spec: a preset's name, a `.py` file that defines `get_config()`, or a config.json.

    Raises:
      ConfigError: there is no such preset or file, or it doesn't yield a valid configuration.
    """
    if spec.endswith(".json"):
        return _load_json(Path(spec))
    if spec.endswith(".py"):
        return _load_python(Path(spec))
    names = preset_names()
    if spec in names:
        return _load_python(_preset_folder() / f"{spec}.py")
    raise ConfigError(
        f"there is no preset named {spec!r}{did_you_mean(spec, names)}",
        f"the presets are {', '.join(names)}",
        "one of these, a .py file with get_config(), or the config.json of a run",
    )


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in _preset_folder().glob("*.py"))


def preset_summary(name: str) -> str:
    """The first line of a preset's docstring."""
    tree = ast.parse((_preset_folder() / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def to_json(config: TrainConfig) -> str:
    """JSON text that `from_json` turns into an equal configuration."""
    return _adapter().dump_json(config, indent=2).decode() + "\n"


def from_json(text: str | bytes) -> TrainConfig:
    """Reads `to_json` text; absent keys take their defaults.

    Raises:
      ConfigError: malformed JSON, unknown keys, or values of the wrong type, all named.
    """
    try:
        return _adapter().validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_explain(error, prefix=""))) from None


def apply_overrides(config: TrainConfig, overrides: Sequence[str]) -> TrainConfig:
    """Replaces values of a configuration.

    Args:
      config: the configuration to start from.
      overrides: `--config.KEY=VALUE` each; a later one wins. Whole numbers may be written 10_000
        or 1e4, tuples as comma lists. `data.sources=a,b` sets the paths of new sources,
        `data.sources.0.weight=2` changes one, and the index after the last adds one.

    Raises:
      ConfigError: unknown keys or malformed values, all of them named.
    """
    data = _adapter().dump_python(config, mode="json")
    problems = []
    for override in overrides:
        key, equals, text = override.removeprefix(FLAG_PREFIX).partition("=")
        problem = _assign(data, key, text) if equals else f"{override} lacks its =VALUE"
        problems += [problem] if problem else []
    try:
        changed = _adapter().validate_python(data)
    except pydantic.ValidationError as error:
        problems += _explain(error, FLAG_PREFIX)
    except ConfigError as error:
        problems.append(error.what)
    if problems:
        raise ConfigError("\n".join(problems))
    return changed


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values of a configuration by dotted key, such as `data.sources.0.path`."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for index, item in enumerate(value):
                flat |= flatten(item, f"{key}.{index}.")
        else:
            flat[key] = value
    return flat


def difference(a: TrainConfig, b: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Keys in which two configurations differ, with both values.

    A key that only one of them has (they have different numbers of sources) has None in the other.
    """
    flat_a, flat_b = flatten(a), flatten(b)
    return [
        (key, flat_a.get(key), flat_b.get(key))
        for key in flat_a | flat_b
        if flat_a.get(key) != flat_b.get(key)
    ]


def describe(config: TrainConfig) -> list[Key]:
    """Every key with its type, its value in `config`, and its help text, in the schema's order."""
    schema = _adapter().json_schema()
    values = flatten(config)

    def walk(node: dict[str, Any], prefix: str) -> Iterator[Key]:
        for name, field in node["properties"].items():
            reference = field.get("$ref") or field.get("items", {}).get("$ref")
            if reference:
                index = "0." if "items" in field else ""
                child = schema["$defs"][reference.rpartition("/")[2]]
                yield from walk(child, f"{prefix}{name}.{index}")
            else:
                key = prefix + name
                yield Key(key, _type_text(field), values[key], field.get("description", ""))

    return list(walk(schema, ""))


@functools.cache
def _adapter() -> pydantic.TypeAdapter[TrainConfig]:
    return pydantic.TypeAdapter(TrainConfig)


def _preset_folder() -> Path:
    # A wheel carries the repository's configs/ inside the package; a checkout has it beside.
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _load_json(path: Path) -> TrainConfig:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from None
    try:
        return from_json(text)
    except BittttError as error:
        raise ConfigError(f"{path} is not a valid configuration", error.what) from None


def _load_python(path: Path) -> TrainConfig:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise ConfigError(f"{path} defines no function get_config()")
        config = get_config()
    except BittttError as error:
        what = error.what if str(path) in error.what else f"{path}: {error.what}"
        raise ConfigError(what, error.why, error.fix) from None
    except Exception as error:
        raise ConfigError(f"{path} failed{_line_of(error, path)}: {error!r}") from error
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"get_config() of {path} returned {config!r}, not a TrainConfig")
    return config


def _line_of(error: Exception, path: Path) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f" in line {lines[-1]}" if lines else ""


def _assign(data: Any, key: str, text: str) -> str:
    """Puts a flag's text where the key says; returns the problem if there is one."""
    *groups, leaf = key.split(".")
    node = data
    for part in groups:
        node = _child(node, part)
    current = _child(node, leaf)
    if current is None:
        return _unknown(FLAG_PREFIX + key, list(_flags(data)))
    if isinstance(current, dict):
        return f"{FLAG_PREFIX}{key} is a group: set its keys, such as {next(_flags(current, key))}"
    node[int(leaf) if isinstance(node, list) else leaf] = _typed(current, text)
    return ""


def _child(node: Any, part: str) -> Any:
    if isinstance(node, dict):
        return node.get(part)
    if not isinstance(node, list) or not part.isdecimal() or int(part) > len(node):
        return None
    if not all(isinstance(item, dict) for item in node):
        return None  # a list of plain values is given as a whole
    if int(part) == len(node):
        node.append(dataclasses.asdict(SourceConfig()))
    return node[int(part)]


def _typed(current: Any, text: str) -> Any:
    """The JSON value that a flag's text stands for; pydantic reads and checks the scalars."""
    if isinstance(current, list):
        parts = text.split(",")
        is_sources = current and isinstance(current[0], dict)
        if not is_sources:
            return parts
        return [dataclasses.asdict(SourceConfig(path=part)) for part in parts]
    if isinstance(current, int) and "e" in text.lower():
        with contextlib.suppress(ValueError, OverflowError):
            if float(text).is_integer():
                return int(float(text))
    return text


def _flags(data: Any, prefix: str = "") -> Iterator[str]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for part, value in items:
        key = f"{prefix}.{part}" if prefix else str(part)
        if isinstance(value, dict) or (
            isinstance(value, list) and value and isinstance(value[0], dict)
        ):
            yield from _flags(value, key)
        else:
            yield FLAG_PREFIX + key


def _explain(error: pydantic.ValidationError, prefix: str) -> list[str]:
    """One line a problem, with the key's full name."""
    known = [prefix + key for key in flatten(TrainConfig())]
    lines = []
    for problem in error.errors():
        key = prefix + ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "unexpected_keyword_argument":
            lines.append(_unknown(key, known))
        elif problem["type"] == "json_invalid":
            lines.append(problem["msg"])
        else:
            value = f"{key}={problem['input']!r}" if problem["loc"] else "the configuration"
            lines.append(f"{value} {problem['msg'].removeprefix('Input ')}")
    return lines


def _unknown(key: str, known: Sequence[str]) -> str:
    group = key.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == group]
    in_group = f" ({group} has {', '.join(siblings)})" if siblings else ""
    return f"{key} is unknown{did_you_mean(key, known) or in_group}"


def _type_text(field: dict[str, Any]) -> str:
    if field.get("type") == "array":
        return f"{_type_text(field['items'])},..."
    if "enum" in field:
        return "|".join(field["enum"])
    names = {"integer": "INT", "number": "FLOAT", "string": "TEXT", "boolean": "True|False"}
    return names[field["type"]]


def with_vocabulary(config: TrainConfig, tokens: int) -> TrainConfig:
    """Fills in a `model.vocab_size` of 0: that of the tokenizer, rounded up to a multiple of 64.

    Args:
      config: the run's.
      tokens: size of its tokenizer.

    Raises:
      ConfigError: the configured size is too small for the tokenizer.
    """
    size = config.model.vocab_size or -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if size < tokens:
        raise ConfigError(
            f"model.vocab_size={size} is smaller than the tokenizer, which has {tokens} tokens",
            fix="--config.model.vocab_size=0, which follows the tokenizer",
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))

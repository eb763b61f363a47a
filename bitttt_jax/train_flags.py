"""The command line of `bitttt train`: launcher flags, `--config.KEY=VALUE` overrides and help.

Imports no jax, so that help, typing mistakes and `--print_config` answer at once.
"""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal, NoReturn

from absl import flags

from bitttt_jax.config import TrainConfig
from bitttt_jax.config.sizes import SIZES, parse_size, resize
from bitttt_jax.config_loading import (
    FLAG_PREFIX,
    apply_overrides,
    describe,
    load_config,
    preset_names,
    to_json,
)
from bitttt_jax.errors import ConfigError, did_you_mean

_USAGE = "bitttt train --config=SPEC [--size=SIZE] [--workdir=DIR] [flags] [--config.KEY=VALUE ...]"
_EXAMPLES = (
    ("bitttt train --config=quickstart", "a small model on this computer"),
    ("bitttt train --config=quickstart --config.steps=2e3 --config.optim.lr=1e-3", "other values"),
    ("bitttt train --config=quickstart --size=30m", "the same with 30 million parameters"),
    ("bitttt train --config=my.py --config.data.sources=a.txt,b/", "own preset, own text"),
    ("bitttt train --config=runs/a/config.json --workdir=runs/b", "an earlier run once more"),
)


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """A parsed command line."""

    config: TrainConfig
    """What to train: the preset or file, in its size, with the overrides applied."""
    preset: TrainConfig
    """The same before size and overrides."""
    spec: str
    """Value of `--config`."""
    workdir: str
    """Run directory."""
    resume: Literal["auto", "never", "force"]
    console: Literal["auto", "rich", "plain", "json"]
    platform: str
    """`cpu`, `gpu`, `tpu`, or empty for JAX's choice."""
    sim_devices: int
    """Simulated CPU devices; 0 for real devices."""
    coordinator: str
    """HOST:PORT of process 0, or empty."""
    num_processes: int
    """Processes of the run when given by flag, else 0."""
    process_id: int
    """This process's number when given by flag, else 0."""
    dry_run: bool


def parse_train_flags(argv: Sequence[str]) -> TrainFlags:
    """Reads the command line of a training run.

    `--help` and `--print_config` print to stdout and raise `SystemExit(0)`.

    Args:
      argv: the arguments, without the program's name.

    Raises:
      ConfigError: an unknown or malformed flag, key or value; or an unloadable configuration.
    """
    overrides, rest = split_overrides(argv)
    if any(arg in ("-h", "--help") for arg in rest):
        _print_help(next((arg[9:] for arg in rest if arg.startswith("--config=")), ""))
    values = _parse_launcher_flags(rest)
    if not values.config:
        raise ConfigError(
            "--config is missing",
            f"it names a preset ({', '.join(preset_names())}), a .py file, or a config.json",
            "bitttt train --config=quickstart",
        )
    preset = load_config(values.config)
    config = apply_overrides(_sized(preset, values.size), overrides)
    if values.print_config:
        print(to_json(config), end="")
        raise SystemExit(0)
    return TrainFlags(
        config=config,
        preset=preset,
        spec=values.config,
        workdir=values.workdir or f"runs/{config.name}",
        resume=values.resume,
        console=values.console,
        platform=values.platform or "",
        sim_devices=values.sim_devices,
        coordinator=values.coordinator,
        num_processes=values.num_processes or 0,
        process_id=values.process_id or 0,
        dry_run=values.dry_run,
    )


def _sized(preset: TrainConfig, size: str) -> TrainConfig:
    """The preset on the size dial, under a name of its own."""
    if not size:
        return preset
    try:
        resized = resize(preset, parse_size(size))
    except ConfigError as error:
        raise ConfigError(f"--size={size}: {error.what}", error.why, error.fix) from None
    return dataclasses.replace(resized, name=f"{preset.name}_{size.lower()}")


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()
    for name, default, text in (
        ("config", "", "preset name, .py file with get_config(), or config.json of a run"),
        (
            "size",
            "",
            f"about so many parameters: {', '.join(size.name for size in SIZES)}, 45m ...",
        ),
        ("workdir", "", "run directory; runs/NAME with the configuration's name if not given"),
        ("coordinator", "", "HOST:PORT of process 0, for several processes started by hand"),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, choices, choice, text in (
        ("resume", ["auto", "never", "force"], "auto", "what to do with a run already in workdir"),
        ("console", ["auto", "rich", "plain", "json"], "auto", "form of the progress output"),
        ("platform", ["cpu", "gpu", "tpu"], None, "where to compute; JAX's choice if not given"),
    ):
        flags.DEFINE_enum(name, choice, choices, text, flag_values=values)
    for name, lower, count, text in (
        ("sim_devices", 0, 0, "simulate this many devices on the CPU"),
        ("num_processes", 1, None, "processes of the run, with --coordinator and --process_id"),
        ("process_id", 0, None, "number of this process, counted from 0"),
    ):
        flags.DEFINE_integer(name, count, text, lower_bound=lower, flag_values=values)
    for name, text in (
        (
            "dry_run",
            "say what memory and time it would take, then stop; reads no text, writes nothing",
        ),
        ("print_config", "print the configuration in effect as JSON and stop"),
    ):
        flags.DEFINE_boolean(name, False, text, flag_values=values)
    return values


def _parse_launcher_flags(args: Sequence[str]) -> flags.FlagValues:
    values = _define_flags()
    try:
        _, *unknown = values(["bitttt train", *args], known_only=True)
    except flags.Error as error:
        raise ConfigError(str(error)) from None
    if unknown:
        raise ConfigError("\n".join(_explain_unknown(arg, values) for arg in unknown))
    _check_workdir(values.workdir)
    _check_processes(values)
    if values.sim_devices and values.platform not in (None, "cpu"):
        raise ConfigError(
            f"--sim_devices={values.sim_devices} and --platform={values.platform} disagree",
            "simulated devices are CPU devices",
        )
    return values


def _explain_unknown(arg: str, known: Iterable[str]) -> str:
    if not arg.startswith("-"):
        hint = f" (did you mean --config={arg}?)" if arg in preset_names() else ""
        return f"unexpected argument {arg!r}{hint}"
    flag = f"--{arg.lstrip('-').partition('=')[0]}"
    keys = [FLAG_PREFIX + key.name for key in describe(TrainConfig())]
    hint = did_you_mean(flag, [f"--{name}" for name in known])
    return f"{flag} is no flag{hint or did_you_mean('.' + flag.lstrip('-'), keys)}"


def _check_workdir(workdir: str) -> None:
    scheme, is_address, rest = workdir.partition("://")
    if is_address:
        raise ConfigError(
            f"--workdir={workdir} is no path of a file system",
            f"a run appends to its files and renames them, which {scheme}:// can't",
            f"a folder that all hosts share, or where {rest.partition('/')[0]} is mounted",
        )


def _check_processes(values: flags.FlagValues) -> None:
    if values.num_processes == 1 and not values.coordinator and not values.process_id:
        return
    given = {
        "--coordinator=HOST:PORT": bool(values.coordinator),
        "--num_processes=N": values.num_processes is not None,
        "--process_id=I": values.process_id is not None,
    }
    missing = [flag for flag, is_given in given.items() if not is_given]
    if 0 < len(missing) < len(given):
        raise ConfigError(
            f"{' and '.join(missing)} missing",
            f"{', '.join(given)} belong together: process I of N, which meet at HOST:PORT",
        )
    if not missing and values.process_id >= values.num_processes:
        raise ConfigError(
            f"--process_id={values.process_id} must be below --num_processes={values.num_processes}"
        )


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates overrides from the other arguments.

    Args:
      argv: arguments of a training.

    Returns:
      `--config.KEY=VALUE` each, also of those written `--config.KEY VALUE`; and the rest.
    """
    overrides, rest = [], []
    args = iter(argv)
    for arg in args:
        if not arg.startswith(FLAG_PREFIX):
            rest.append(arg)
        elif "=" in arg:
            overrides.append(arg)
        else:
            value = next(args, None)
            overrides.append(arg if value is None else f"{arg}={value}")
    return overrides, rest


def _print_help(spec: str) -> NoReturn:
    """Prints help with the values of `spec`, or the schema's defaults if it is empty."""
    config = load_config(spec) if spec else TrainConfig()
    print(f"usage: {_USAGE}\n\nExamples:")
    for command, purpose in _EXAMPLES:
        print(_entry(command, purpose))
    print(f"\nPresets: {', '.join(preset_names())}\n\nFlags:")
    values = _define_flags()
    for name in values:
        default = "..." if values[name].default in (None, "") else values[name].default
        print(_entry(f"--{name}={default}", values[name].help))
    print(f"\nConfiguration keys with their {f'values in {spec}' if spec else 'defaults'}:")
    group = ""
    for key in describe(config):
        print(end="\n" if key.group != group else "")
        group = key.group
        value = ",".join(key.value) if isinstance(key.value, tuple) else key.value
        print(_entry(f"{FLAG_PREFIX}{key.name}={value}  ({key.type})", key.help))
    raise SystemExit(0)


def _entry(head: str, text: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    body = textwrap.fill(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"  {head}\n{body}"

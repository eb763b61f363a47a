"""The `bitttt` command: `bitttt <command> [flags]` runs `bitttt_jax.commands.<command>`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import bitttt_jax
from bitttt_jax.errors import ConfigError, did_you_mean, exit_process, run_main

# Name, module with main(argv), and the line that `bitttt --help` shows.
COMMANDS = {
    "train": ("bitttt_jax.train", "train a model, or resume a run"),
    "watch": ("bitttt_jax.commands.watch", "look at runs in the terminal"),
    "prepare": ("bitttt_jax.commands.prepare", "turn text into token shards"),
    "generate": ("bitttt_jax.commands.generate", "continue a prompt with a trained model"),
    "chat": ("bitttt_jax.commands.chat", "talk with a model"),
    "batch": ("bitttt_jax.commands.batch", "continue many prompts of a file"),
    "serve": ("bitttt_jax.commands.serve", "answer OpenAI's clients with a model"),
    "bench": ("bitttt_jax.commands.bench", "measure how fast a model reads and writes"),
    "convert": ("bitttt_jax.commands.convert", "pack a trained model for inference"),
    "evaluate": ("bitttt_jax.commands.evaluate", "measure a trained model on text"),
    "inspect": ("bitttt_jax.commands.inspect", "show what a model's files hold"),
    "studio": ("bitttt_jax.commands.studio", "train, watch and try models in the browser"),
    "doctor": ("bitttt_jax.commands.doctor", "check this installation"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      argv: arguments without the program's name; those of the process if None.

    Returns:
      The exit code.
    """
    return run_main(_dispatch, sys.argv[1:] if argv is None else argv)


def _dispatch(argv: Sequence[str]) -> int | None:
    command, *rest = argv or ["--help"]
    if command in ("-h", "--help", "help"):
        print(_help())
        return None
    if command == "--version":
        print(f"bitttt-jax {bitttt_jax.__version__}")
        return None
    if command not in COMMANDS:
        raise ConfigError(
            f"there is no command {command!r}{did_you_mean(command, COMMANDS)}",
            f"the commands are {', '.join(COMMANDS)}",
        )
    module, _ = COMMANDS[command]
    return importlib.import_module(module).main(rest)


def _help() -> str:
    lines = ["usage: bitttt COMMAND [flags]", "", "Commands:"]
    lines += [f"  {name:10} {summary}" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "bitttt COMMAND --help explains a command; bitttt --version prints the version."]
    return "\n".join(lines)


def run() -> NoReturn:
    """Runs the command of this process, and ends it."""
    exit_process(main())


if __name__ == "__main__":
    run()

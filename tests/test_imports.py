"""Imports run one way only, and some packages are imported in one place only."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "bitttt_jax"

# Bottom first. A part may import the rows below its own, never its own row or one above.
ROWS = (
    {"errors"},
    {"config"},
    {"config_loading"},
    {"train_flags"},
    {"native"},
    {"ops"},
    {"ttt", "ternary"},
    {"layers"},
    {"models"},
    {"data", "distributed", "runs"},
    {"interop"},
    {"training", "inference"},
    {"studio", "server", "rehearse", "launch"},
    {"commands", "train"},
    {"__main__"},
)
ROW_OF = {part: index for index, row in enumerate(ROWS) for part in row}
KNOW_NO_MODEL = {"data", "distributed", "runs"}
MODEL_PARTS = {"ops", "ttt", "ternary", "layers", "models"}

# What the package itself offers: imported when it is used.
OFFERED = {"inference.load.load"}

# Loaded before a command knows whether it computes anything.
LIGHT = {"errors", "config", "config_loading", "train_flags", "__main__"}
HEAVY = {"jax", "flax", "optax", "orbax", "grain", "tensorboard", "tokenizers"}

ONLY_IN = {
    "orbax": "runs/checkpoints.py",
    "tensorboard": "runs/metrics.py",
    "jax.distributed": "distributed/",
}


def used_names(tree: ast.AST, file: str) -> Iterator[str]:
    """Dotted names that a module imports, and `jax.…` attributes that it uses."""
    folder = [PACKAGE, *Path(file).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax":
            yield f"jax.{node.attr}"


def violations(file: str, source: str) -> list[str]:
    """Broken rules of a module.

    Args:
      file: path inside the package, such as `data/shards.py`.
      source: its text.
    """
    own = Path(file).parts[0].removesuffix(".py")
    if own != "__init__" and own not in ROW_OF:
        return [f"{file}: {own} stands in no row"]
    broken = []
    for name in sorted(set(used_names(ast.parse(source), file))):
        top, *rest = name.split(".")
        part = rest[0] if top == PACKAGE and rest else ""
        if part in ROW_OF and part != own and not (own == "__init__" and ".".join(rest) in OFFERED):
            upwards = own == "__init__" or ROW_OF[part] >= ROW_OF[own]
            if upwards or (own in KNOW_NO_MODEL and part in MODEL_PARTS):
                broken.append(f"{file}: {own} must not import {part}")
        if own in LIGHT and top in HEAVY:
            broken.append(f"{file}: {own} must not import {top}")
        for package, place in ONLY_IN.items():
            if f"{name}.".startswith(f"{package}.") and not file.startswith(place):
                broken.append(f"{file}: only {place} uses {package}")
    return broken


def modules() -> Iterable[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def test_the_package_keeps_the_rules():
    broken = [
        problem
        for path in modules()
        for problem in violations(
            path.relative_to(ROOT / PACKAGE).as_posix(), path.read_text(encoding="utf-8")
        )
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("ops/a.py", "from bitttt_jax.layers.norm import RMSNorm", "ops must not import layers"),
        ("ops/a.py", "import bitttt_jax.models", "ops must not import models"),
        ("ops/a.py", "from bitttt_jax import models", "ops must not import models"),
        ("ops/a.py", "from ..ttt import scan", "ops must not import ttt"),
        ("ops/a/b.py", "from ...ttt import scan", "ops must not import ttt"),
        ("ops/a.py", "def f():\n  from bitttt_jax.ttt import scan", "ops must not import ttt"),
        ("ttt/a.py", "from bitttt_jax.ternary import matmul", "ttt must not import ternary"),
        ("data/a.py", "from bitttt_jax.runs import status", "data must not import runs"),
        ("runs/a.py", "from bitttt_jax.models import transformer", "runs must not import models"),
        ("distributed/a.py", "from bitttt_jax.ops import norm", "distributed must not import ops"),
        ("models/a.py", "from bitttt_jax.training import step", "models must not import training"),
        ("studio/a.py", "import bitttt_jax.commands.train", "studio must not import commands"),
        ("config.py", "from bitttt_jax.config_loading import x", "must not import config_loading"),
        ("config.py", "import jax.numpy as jnp", "config must not import jax"),
        ("train_flags.py", "from jax import numpy", "train_flags must not import jax"),
        ("training/a.py", "import orbax.checkpoint as ocp", "only runs/checkpoints.py uses orbax"),
        ("runs/status.py", "from tensorboard import x", "only runs/metrics.py uses tensorboard"),
        ("training/a.py", "import jax\njax.distributed.initialize()", "only distributed/ uses"),
        ("training/a.py", "from jax import distributed", "only distributed/ uses"),
        ("extras/a.py", "", "extras stands in no row"),
        ("__init__.py", "from bitttt_jax.config import TrainConfig", "must not import config"),
    ],
)
def test_a_violation_is_found(file: str, source: str, problem: str):
    found = violations(file, source)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("layers/a.py", "from bitttt_jax.ops import norm\nfrom bitttt_jax.layers.b import c"),
        ("ops/a.py", "from . import b\nfrom .c import d\nimport jax"),
        ("training/a.py", "from bitttt_jax.models import m\nfrom bitttt_jax.data import d"),
        ("runs/checkpoints.py", "import orbax.checkpoint"),
        ("distributed/a.py", "import jax\njax.distributed.shutdown()"),
        ("data/a.py", "import orbaxes\nfrom bitttt_jax.errors import DataError"),
    ],
)
def test_a_legal_import_is_none(file: str, source: str):
    assert violations(file, source) == []


def test_every_package_is_installed():
    """setup.cfg lists the packages, because configs/ comes from outside the folder."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    markers = (ROOT / PACKAGE).rglob("__init__.py")
    found = [".".join(marker.parent.relative_to(ROOT).parts) for marker in markers]
    assert listed == sorted([*found, f"{PACKAGE}.configs"])

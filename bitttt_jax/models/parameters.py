"""Names of the parameters, and what they say about how a parameter is treated."""

from __future__ import annotations

import re
from typing import Any

import jax

from bitttt_jax.config import ModelConfig

_PROJECTION = re.compile(r"/(query|key|value|query_key|gate|up|down|output)/kernel$")
_TABLE = re.compile(r"^(embed/embedding|head/kernel)$")


def leaf_paths(tree: Any) -> Any:
    """A tree of the same structure that holds each leaf's path, its names joined by slashes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
    )


def flatten(params: Any) -> dict[str, Any]:
    """Leaves by path.

    >>> flatten({"embed": {"embedding": 1}, "final_norm": {"scale": 2}})
    {'embed/embedding': 1, 'final_norm/scale': 2}
    """
    paths = jax.tree.leaves(leaf_paths(params))
    return dict(zip(paths, jax.tree.leaves(params), strict=True))


def is_projection(path: str) -> bool:
    """Whether a path names the kernel of a `BitLinear`."""
    return _PROJECTION.search(path) is not None


def is_table(path: str) -> bool:
    """Whether a path names the embedding or the output head."""
    return _TABLE.search(path) is not None


def is_fast(path: str) -> bool:
    """Whether a path names initial fast weights."""
    return "/fast/" in path


def is_ternary(config: ModelConfig, path: str) -> bool:
    """Whether the parameter at a path is quantised in the forward pass."""
    part = config.ternary.mlp if "/mlp/" in path else config.ternary.mixer
    return part and is_projection(path)


def group_name(index: int) -> str:
    """Name of one group's parameters where they aren't stacked."""
    return f"group_{index}"


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """The same parameters with a tree for each group in place of the stack `blocks`."""
    rest = {name: leaf for name, leaf in params.items() if name != "blocks"}
    count = jax.tree.leaves(params["blocks"])[0].shape[0]
    groups = {
        group_name(i): jax.tree.map(lambda stacked, i=i: stacked[i], params["blocks"])
        for i in range(count)
    }
    return rest | groups

"""Where parameters live: regular expressions on their paths, mapped to partition specs.

Each family of parameters is named, replicated ones too: a new matrix that nobody thought about
is an error instead of a silent copy on every device. Optimizer moments repeat the parameter's
path inside theirs and so get its rule.
"""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.errors import ConfigError

# The leading axis of everything in blocks/ is the scan over depth, which is never sharded.
_BLOCK = r"blocks/block_\d+/"
RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),
    (r"head/kernel", P("fsdp", "tensor")),
    (r"final_norm/scale", P()),
    (_BLOCK + r"mixer/(query|key|value|query_key|gate)/kernel", P(None, "fsdp", "tensor")),
    (_BLOCK + r"mixer/(query|key|value)/bias", P(None, "tensor")),
    (_BLOCK + r"mlp/(gate|up)/kernel", P(None, "fsdp", "tensor")),
    (_BLOCK + r"(mixer/output|mlp/down)/kernel", P(None, "tensor", "fsdp")),
    (_BLOCK + r"mixer/fast/(w1|b1|w2|b2)", P(None, "tensor")),
    (_BLOCK + r"(mixer_norm|mlp_norm|pre_conv_norm)/scale", P()),
    (_BLOCK + r"(mixer|mlp)/sub_norm/scale", P()),
    (_BLOCK + r"(mixer|mlp)/\w+/norm/scale", P()),
    (_BLOCK + r"mixer/(fast_norm|post_norm)/(scale|bias)", P()),
    (_BLOCK + r"(pre_conv|mixer/(query|key)_conv)/(kernel|bias)", P()),
    (_BLOCK + r"mixer/learning_rate/(kernel|bias)", P()),
    (_BLOCK + r"mixer/token_scale", P()),
)


def find_spec(path: str) -> P:
    """Partition spec of a parameter, or of an optimizer moment that repeats its path.

    Args:
      path: names joined by `/`, such as `opt_state/0/mu/blocks/block_0/mlp/up/kernel`.

    Raises:
      ValueError: no rule names the path.
    """
    for pattern, spec in RULES:
        if re.fullmatch(rf"(.*/)?{pattern}", path):
            return spec
    raise ValueError(f"no sharding rule names {path}: add its family to RULES")


def shardings(abstract_tree: Any, mesh: Mesh) -> Any:
    """Shardings of a train state, or of any tree that holds parameters.

    Args:
      abstract_tree: a tree of arrays or `jax.ShapeDtypeStruct`. Scalars are replicated.
      mesh: the device mesh.

    Returns:
      The tree with a `NamedSharding` for each leaf.

    Raises:
      ConfigError: a mesh axis doesn't divide the dimension that it should shard.
      ValueError: no rule names an array.
    """

    def sharding(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        spec = find_spec(path)
        _check_divides(path, leaf.shape, spec, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_tree)


def _check_divides(path: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> None:
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise ConfigError(
                f"mesh.{axis}={mesh.shape[axis]} doesn't divide {path} of shape {shape}",
                f"{size} of its rows, columns or heads are shared along that axis",
                f"a --config.mesh.{axis} that divides {size}",
            )

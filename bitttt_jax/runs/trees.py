"""Names, shapes and dtypes of pytrees, and how two of them differ, in the user's words."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

PyTree = Any


def abstract_array(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array; the first local device where it has no sharding."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def differences(saved: PyTree, asked: PyTree, *, partial: bool = False) -> list[str]:
    """Says which leaves of two trees don't match.

    Only names count, not whether a container is a dict, a tuple or a dataclass: a saved tree comes
    back as nested dicts.

    Args:
      saved: tree of anything with a shape and a dtype.
      asked: the same, of what is wanted.
      partial: leaves of `saved` that `asked` doesn't have are no difference.

    Returns:
      A line for each leaf that is missing, too many, or of another shape or dtype.
    """
    old, new = _leaves(saved), _leaves(asked)
    names = [*new, *(name for name in old if name not in new and not partial)]
    return [
        f"{name}: saved {old.get(name, 'nothing')}, asked {new.get(name, 'nothing')}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _leaves(tree: PyTree) -> dict[str, str]:
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # the form in which keys are stored
        leaves[name] = f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"
    return leaves

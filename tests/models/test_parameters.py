from __future__ import annotations

import functools

import jax

from bitttt_jax.config import TernaryConfig
from bitttt_jax.models import parameters, transformer
from tests.models import samples


@functools.cache
def paths() -> list[str]:
    config = samples.config(
        mixers=("ttt_mlp", "attention"), tie_embeddings=False, compute_dtype="float32"
    )
    params = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    return list(parameters.flatten(params))


def test_every_path_is_of_one_kind_at_most():
    kinds = (parameters.is_projection, parameters.is_table, parameters.is_fast)
    found: list[set[str]] = [set(), set(), set()]
    for path in paths():
        assert sum(is_kind(path) for is_kind in kinds) <= 1, path
        for names, is_kind in zip(found, kinds, strict=True):
            if is_kind(path):
                names.add(path)
    projections, tables, fast = found
    mixer, mlp = "blocks/block_{}/mixer/{}/kernel", "blocks/block_{}/mlp/{}/kernel"
    assert projections == {
        *(mixer.format(0, name) for name in ("query_key", "value", "gate", "output")),
        *(mixer.format(1, name) for name in ("query", "key", "value", "output")),
        *(mlp.format(block, name) for block in (0, 1) for name in ("gate", "up", "down")),
    }
    assert tables == {"embed/embedding", "head/kernel"}
    assert fast == {f"blocks/block_0/mixer/fast/{name}" for name in ("w1", "b1", "w2", "b2")}


def test_ternary_parts_are_those_of_the_configuration():
    names = paths()
    for mixer in (True, False):
        for mlp in (True, False):
            config = samples.config(TernaryConfig(mixer=mixer, mlp=mlp))
            own = {path for path in names if parameters.is_ternary(config, path)}
            assert own == {
                path
                for path in names
                if parameters.is_projection(path) and (mlp if "/mlp/" in path else mixer)
            }


def test_paths_have_the_structure_of_the_tree():
    tree = {"a": {"b": 1, "c": (2, 3)}, "d": None}
    assert parameters.leaf_paths(tree) == {"a": {"b": "a/b", "c": ("a/c/0", "a/c/1")}, "d": None}
    assert parameters.flatten(tree) == {"a/b": 1, "a/c/0": 2, "a/c/1": 3}

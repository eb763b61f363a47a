"""Comparison of trees: names, shapes, dtypes, whatever the containers."""

import collections

import jax
import jax.numpy as jnp

from bitttt_jax.runs.trees import abstract_array, differences

Pair = collections.namedtuple("Pair", "a b")


def test_only_names_count_not_containers():
    asked = Pair(a=[jnp.zeros(2), jnp.zeros(3)], b={"c": jnp.zeros((), jnp.int32)})
    saved = {"a": (jnp.ones(2), jnp.ones(3)), "b": {"c": jnp.ones((), jnp.int32)}}
    assert differences(saved, asked) == []


def test_every_kind_of_difference_has_a_line():
    saved = {"shape": jnp.zeros(2), "dtype": jnp.zeros(2), "old": jnp.zeros(2), "same": jnp.ones(1)}
    asked = {
        "shape": jnp.zeros((2, 1)),
        "dtype": jnp.zeros(2, jnp.bfloat16),
        "new": jnp.zeros(()),
        "same": jnp.zeros(1),
    }
    expected = [
        "dtype: saved float32[2], asked bfloat16[2]",
        "new: saved nothing, asked float32[]",
        "shape: saved float32[2], asked float32[2,1]",
    ]
    assert differences(saved, asked, partial=True) == expected
    assert differences(saved, asked) == [*expected, "old: saved float32[2], asked nothing"]


def test_random_keys_compare_as_they_are_stored():
    saved = {"key": jnp.zeros(2, jnp.uint32)}
    assert differences(saved, {"key": jax.random.key(0)}) == []
    assert differences(saved, {"key": jax.random.split(jax.random.key(0), 3)}) == [
        "key: saved uint32[2], asked uint32[3,2]"
    ]


def test_abstract_array_keeps_the_sharding_or_takes_the_first_device():
    device = jax.devices()[3]
    assert abstract_array(jax.device_put(1.0, device)).sharding.device_set == {device}
    assert abstract_array(jax.ShapeDtypeStruct((2,), jnp.int8)).sharding.device_set == {
        jax.devices()[0]
    }

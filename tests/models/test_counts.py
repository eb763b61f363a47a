from __future__ import annotations

import dataclasses
import math
import re
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import TernaryConfig
from bitttt_jax.config_loading import load_config, preset_names, with_vocabulary
from bitttt_jax.models import counts, transformer
from tests.models import samples

PRESETS = Path(__file__).parent.parent.parent / "configs"
BYTES_TOKENS = 257


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_the_parameters_that_they_name(name):
    config = load_config(name)
    tokenizer = config.data.tokenizer
    tokens = BYTES_TOKENS if tokenizer.kind == "bytes" else tokenizer.vocab_size
    model = with_vocabulary(config, config.model.vocab_size or tokens).model
    docstring = runpy.run_path(str(PRESETS / f"{name}.py"))["__doc__"]
    (named,) = re.findall(r"^Parameters: ([\d,]+)$", docstring, re.MULTILINE)
    assert named == f"{counts.count(model, config.data.seq_len).total:,}"


def test_bitnet_2b4t_has_the_published_parameters():
    config = load_config("bitnet_2b4t")
    count = counts.count(config.model, config.data.seq_len)
    assert count.ternary == 2_084_044_800
    assert count.full == 328_335_360 + 440_320  # embedding and norms
    assert count.cache_bytes_per_token == 76_800


D, H, K, G, F, V, W, b, R = 12, 3, 4, 1, 20, 31, 5, 4, 2
SIZES: dict[str, Any] = {
    "dim": D, "num_heads": H, "num_kv_heads": G, "mlp_dim": F, "vocab_size": V,
    "ttt": {"mini_batch": b, "mlp_ratio": R, "conv_width": W}, "compute_dtype": "bfloat16",
}  # fmt: skip
MLP = 3 * D * F
FAST = {"ttt_linear": H * (K * K + K), "ttt_mlp": H * (2 * R * K * K + R * K + K)}
# Gate and offsets of the learning rate, inner norm, norm of the outputs, convolutions, three norms.
MAMBA = (D * H + H) + b + 2 * H * K + 2 * H * K + 2 * (W + 1) * H * K + (W + 1) * D + 3 * D


@pytest.mark.parametrize(
    ("settings", "ternary", "expected"),
    [
        (
            {"mixers": ("attention",)},
            TernaryConfig(),
            (2 * D * H * K + 2 * D * G * K + MLP, 0, 2 * D),
        ),
        (
            {"mixers": ("attention",), "norm_placement": "subln"},
            TernaryConfig(mixer=False),
            (MLP, 0, 2 * D * H * K + 2 * D * G * K + 2 * D + H * K + F),
        ),
        (
            {"mixers": ("ttt_linear",)},
            TernaryConfig(),
            (4 * D * H * K + MLP, FAST["ttt_linear"], MAMBA),
        ),
        (
            {"mixers": ("ttt_mlp",)},
            TernaryConfig(mlp=False),
            (4 * D * H * K, FAST["ttt_mlp"], MAMBA + MLP),
        ),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_split_by_hand(settings, ternary, expected, tied):
    config = samples.config(
        ternary, **{**SIZES, **settings, "tie_embeddings": tied, "num_layers": 3}
    )
    count = counts.count(config, seq_len=8)
    per_block = dict(zip(("ternary", "fast", "full"), expected, strict=True))
    assert count.ternary == 3 * per_block["ternary"]
    assert count.fast == 3 * per_block["fast"]
    assert count.full == 3 * per_block["full"] + V * D * (1 if tied else 2) + D
    assert count.total == count.ternary + count.fast + count.full
    assert count.packed_bytes == math.ceil(count.ternary / 4) + 2 * (count.fast + count.full)


def test_state_and_cache_are_those_that_are_made():
    mixers = ("ttt_linear", "attention", "ttt_mlp")
    config = samples.config(**{**SIZES, "mixers": mixers, "num_layers": 3})
    count = counts.count(config, seq_len=8)

    def size(slots):
        shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
        init = lambda params: transformer.init_state(config, params, 1, slots).blocks
        leaves = jax.tree.leaves(jax.eval_shape(init, shapes))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    assert count.cache_bytes_per_token == size(11) - size(10) == 2 * 2 * G * K
    assert count.state_bytes == size(10) - 10 * count.cache_bytes_per_token


def dot_flops(jaxpr: Any) -> float:
    """Twice the multiply-adds of all matrix products, in loops as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            (out,), lhs = equation.outvars, equation.invars[0]
            depth = math.prod(lhs.aval.shape[i] for i in contracted)
            total += 2 * math.prod(out.aval.shape) * depth
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        children = [equation.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr")]
        for child in children:
            if child is not None:
                total += repeats * dot_flops(getattr(child, "jaxpr", child))
        branches = equation.params.get("branches", ())  # of which one runs
        total += max((dot_flops(branch.jaxpr) for branch in branches), default=0.0)
    return total


def forward_flops(config: Any, length: int) -> float:
    """Operations a token that the model itself contains."""

    def run(params, token_BT):
        return transformer.logits(config, params, transformer.read(config, params, token_BT))

    # Native products of few rows of bfloat16 wouldn't be seen.
    config = dataclasses.replace(config, compute_dtype="float32")
    params = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    token_BT = jax.ShapeDtypeStruct((2, length), jnp.int32)
    return dot_flops(jax.make_jaxpr(run)(params, token_BT).jaxpr) / (2 * length)


@pytest.mark.parametrize("mixer", ["ttt_linear", "ttt_mlp"])
@pytest.mark.parametrize(("backbone", "is_tied"), [("mamba", True), ("transformer", False)])
def test_forward_flops_of_ttt_are_those_of_the_model(mixer, backbone, is_tied):
    ttt = SIZES["ttt"] | {"backbone": backbone}
    settings = {"mixers": (mixer,), "num_layers": 3, "tie_embeddings": is_tied, "ttt": ttt}
    config = samples.config(**{**SIZES, **settings})
    own = counts.count(config, 3 * b).forward_flops
    # Biases may be computed as one more row of a product, but aren't counted.
    hidden = K if mixer == "ttt_linear" else R * K
    biases = 3 * H * (6 * hidden + 2 * b)
    assert own <= forward_flops(config, 3 * b) <= own + biases


@pytest.mark.parametrize("length", [1, 16, 600])
def test_forward_flops_of_attention_leave_out_what_is_masked(length):
    config = samples.config(**{**SIZES, "mixers": ("attention",), "num_layers": 3})
    own = counts.count(config, length).forward_flops
    keys = np.arange(1, length + 1)
    masked = 3 * 4 * H * K * (length - keys.mean())
    assert forward_flops(config, length) - masked <= own <= forward_flops(config, length)
    if length == 1:
        assert own == forward_flops(config, length)


def test_a_window_bounds_the_flops_of_attention():
    config = samples.config(**{**SIZES, "mixers": ("attention",), "window": 10})
    unbounded = samples.config(**{**SIZES, "mixers": ("attention",)})
    keys = np.minimum(np.arange(1, 101), 10)
    per_key = 2 * 4 * H * K
    difference = (
        counts.count(unbounded, 100).forward_flops - counts.count(config, 100).forward_flops
    )
    np.testing.assert_allclose(difference, per_key * (50.5 - keys.mean()), rtol=1e-12)
    shorter = (counts.count(c, 7).forward_flops for c in (config, unbounded))
    assert len(set(shorter)) == 1


def test_training_takes_three_forward_passes():
    count = counts.count(samples.config(**SIZES), 8)
    assert count.train_flops == 3 * count.forward_flops
    assert count.latent_bytes == 4 * count.total

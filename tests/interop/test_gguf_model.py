"""Loaded models against the arrays that the files were written from."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.errors import DataError
from bitttt_jax.interop import gguf_model
from bitttt_jax.interop.chat_templates import BITNET_2B4T
from bitttt_jax.interop.gguf import GGUFFile
from bitttt_jax.interop.gguf_writer import NewTensor, write
from bitttt_jax.models import transformer
from bitttt_jax.ops import rope
from bitttt_jax.ops.tables import QuantizedTable, quantize_table
from bitttt_jax.ternary.packing import PackedTernary, unpack
from tests.interop import gguf_files
from tests.interop.gguf_files import ternary, weights, write_i2_s_model, write_model

PLACES = {
    "attn_q": ("mixer", "query"),
    "attn_k": ("mixer", "key"),
    "attn_v": ("mixer", "value"),
    "attn_output": ("mixer", "output"),
    "ffn_gate": ("mlp", "gate"),
    "ffn_up": ("mlp", "up"),
    "ffn_down": ("mlp", "down"),
}
NORMS = {
    "attn_norm": ("mixer_norm",),
    "ffn_norm": ("mlp_norm",),
    "attn_sub_norm": ("mixer", "sub_norm"),
    "ffn_sub_norm": ("mlp", "sub_norm"),
}


def leaf(params: Any, name: str) -> Any:
    """The parameter that a tensor is."""
    outer = {"token_embd": ("embed", "embedding"), "output_norm": ("final_norm", "scale")}
    first, *rest = name.split(".")
    if first != "blk":
        path: tuple[str, ...] = outer.get(first, ("head", "kernel"))
    else:
        index, stem, kind = rest
        at = (f"group_{index}", "block_0")
        last = "bias" if kind == "bias" else "kernel" if stem in PLACES else "scale"
        path = (*at, *(PLACES.get(stem) or NORMS[stem]), last)
    for key in path:
        params = params[key]
    return params


def floats(leaf: Any) -> np.ndarray:
    """A parameter as GGUF has it: `[N, K]`."""
    if isinstance(leaf, PackedTernary):
        return np.asarray(unpack(leaf)).T * np.asarray(leaf.scale)
    if isinstance(leaf, QuantizedTable):
        return np.asarray(leaf.codes) * np.asarray(leaf.scale)[:, None]
    return np.asarray(leaf, np.float32)


def assert_loaded(params: Any, values: dict[str, np.ndarray]) -> None:
    """Sees that parameters are the values, and no others are there."""
    for name, value in values.items():
        found = leaf(params, name)
        is_transposed = getattr(found, "ndim", 0) == 2 and name != "token_embd.weight"
        rounded = value.astype(ml_dtypes.bfloat16).astype(np.float32)
        expected = value if value.ndim == 1 else rounded
        found = floats(found).T if is_transposed else floats(found)
        np.testing.assert_array_equal(found, expected, err_msg=name)
    is_leaf = lambda x: isinstance(x, PackedTernary | QuantizedTable)
    assert len(jax.tree.leaves(params, is_leaf=is_leaf)) == len(values)


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("llama", {}),
        ("llama", {"biases": True, "tied": False}),
        ("qwen2", {"biases": True}),
        ("bitnet", {}),
        ("bitnet-25", {"tied": False}),
        ("bitnet-b1.58", {}),
    ],
)
def test_each_architecture(tmp_path: Path, arch: str, settings: dict[str, bool]):
    values = weights(arch, **settings)
    model = gguf_model.load(write_model(tmp_path / "a.gguf", arch, values))
    is_bitnet = arch.startswith("bitnet")
    assert model.config == ModelConfig(
        vocab_size=264,
        dim=8,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        mlp_dim=16,
        mlp="relu2_glu" if arch in ("bitnet-25", "bitnet-b1.58") else "swiglu",
        norm_placement="subln" if is_bitnet else "llama",
        rope_theta=500.0,
        qkv_bias=settings.get("biases", False),
        tie_embeddings=settings.get("tied", True),
        ternary=TernaryConfig(mixer=False, mlp=False),
    )
    assert model.context == 64
    assert model.description == f"GGUF, {arch}, F32"
    assert_loaded(model.params, values)
    token_BT = jnp.arange(6)[None]
    hidden = transformer.read(model.config, model.params, token_BT)
    assert np.isfinite(np.asarray(hidden, np.float32)).all()


def test_rows_of_query_and_key_turn_as_they_were_made_to():
    """RoPE on neighbours, as `llama` files want it, is ours on rows in another order."""
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(1, 5, 3, 8)).astype(np.float32)
    order = gguf_model.halves_order(3, 8)
    neighbours = np.empty((5, 24), np.float32)
    neighbours[:, order] = halves.reshape(5, 24)
    position = jnp.arange(5)[None]
    turned = rope.rope(neighbours.reshape(1, 5, 3, 8), position, 100.0, interleaved=True)
    expected = rope.rope(halves, position, 100.0)
    np.testing.assert_allclose(
        np.asarray(turned).reshape(5, 24)[:, order], expected.reshape(5, 24), atol=1e-6
    )


def random_blocks(shape: tuple[int, int], type_: Type, seed: int) -> np.ndarray:
    """Bytes of blocks that the library doesn't quantise, their scales small numbers."""
    block, size = GGML_QUANT_SIZES[type_]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    place = slice(0, 4) if type_ == Type.Q4_K else slice(208, 210)
    scales = rng.uniform(0.001, 0.01, (*blocks.shape[:2], (place.stop - place.start) // 2))
    blocks[..., place] = scales.astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize(
    "type_", [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q8_0, Type.Q4_K, Type.Q6_K]
)
@pytest.mark.parametrize("kept", ["bfloat16", "int8"])
def test_types_of_matrices(tmp_path: Path, monkeypatch, type_: Type, kept):
    values = weights("llama", dim=256, hidden=512, blocks=1)
    stored = {}

    def quantize(value: np.ndarray, asked: Type) -> np.ndarray:
        if value.ndim == 1:
            return value
        data = (
            random_blocks(value.shape, asked, len(stored))
            if asked in (Type.Q4_K, Type.Q6_K)
            else real(value, asked)
        )
        stored[len(stored)] = quants.dequantize(data, asked)
        return data

    real = quants.quantize
    with monkeypatch.context() as patched:
        patched.setattr(quants, "quantize", quantize)
        path = write_model(
            tmp_path / "a.gguf", "llama", values, matrix_type=type_, table_type=type_
        )
    model = gguf_model.load(path, kept)
    assert model.description == f"GGUF, llama, {type_.name}"
    matrices = [name for name, value in values.items() if value.ndim == 2]
    for name, expected in zip(matrices, stored.values(), strict=True):
        heads = 2 if "attn_q" in name else 1
        if "attn_q" in name or "attn_k" in name:
            expected = expected.reshape(heads, -1, 2, 256).swapaxes(1, 2).reshape(-1, 256)
        found = leaf(model.params, name)
        if kept == "int8":
            again = quantize_table(jnp.asarray(expected))
            np.testing.assert_array_equal(found.codes, again.codes, err_msg=name)
            np.testing.assert_allclose(found.scale, again.scale, rtol=1e-6)
        else:
            found = floats(found) if name == "token_embd.weight" else floats(found).T
            np.testing.assert_array_equal(
                found, expected.astype(ml_dtypes.bfloat16).astype(np.float32), err_msg=name
            )


@pytest.mark.parametrize("arch", ["llama", "bitnet"])
@pytest.mark.parametrize("type_", [Type.TQ1_0, Type.TQ2_0, Type.F16])
def test_ternary_matrices_stay_packed(tmp_path: Path, arch: str, type_: Type):
    values = ternary(weights(arch, dim=256, hidden=256, blocks=1))
    path = write_model(tmp_path / "a.gguf", arch, values, matrix_type=type_)
    model = gguf_model.load(path)
    assert model.config.ternary == TernaryConfig()
    for name in PLACES:
        assert isinstance(leaf(model.params, f"blk.0.{name}.weight"), PackedTernary)
    assert_loaded(model.params, values)


@pytest.mark.parametrize("layout", ["x86", "arm"])
@pytest.mark.parametrize("arch", ["llama", "bitnet-b1.58"])
def test_i2_s(tmp_path: Path, arch: str, layout):
    values = ternary(weights(arch, dim=128, hidden=256, blocks=1), 0.3)
    stored = dict(values)
    if arch == "llama":
        for name, heads in (("blk.0.attn_q.weight", 2), ("blk.0.attn_k.weight", 1)):
            stored[name] = gguf_files.permuted(values[name], heads)
    path = write_i2_s_model(tmp_path / "a.gguf", arch, stored, layout)
    model = gguf_model.load(path, i2_s_layout=layout)
    assert model.config.ternary == TernaryConfig()
    assert model.description == f"GGUF, {arch}, I2_S and F16"
    for name in PLACES:
        found = leaf(model.params, f"blk.0.{name}.weight")
        np.testing.assert_array_equal(floats(found), values[f"blk.0.{name}.weight"], err_msg=name)
        assert found.codes.unsafe_buffer_pointer() % 64 == 0


def test_scales_beside_the_matrices(tmp_path: Path):
    values = ternary(weights("bitnet", dim=256, hidden=256, blocks=1))
    scales = {f"blk.0.{name}.scale": np.float32([i + 2]) for i, name in enumerate(PLACES)}
    model = gguf_model.load(
        write_model(tmp_path / "a.gguf", "bitnet", values | scales, matrix_type=Type.TQ2_0)
    )
    for i, name in enumerate(PLACES):
        found = leaf(model.params, f"blk.0.{name}.weight")
        np.testing.assert_array_equal(floats(found), (i + 2) * values[f"blk.0.{name}.weight"])


def test_ternary_matrices_with_many_scales_become_floats_with_their_neighbours(tmp_path: Path):
    values = ternary(weights("bitnet", dim=256, hidden=512, blocks=1))
    values["blk.0.attn_k.weight"][:3] *= 2
    values["blk.0.ffn_down.weight"][:, 256:] *= 2
    path = write_model(tmp_path / "a.gguf", "bitnet", values, matrix_type=Type.TQ2_0)
    model = gguf_model.load(path)
    assert model.config.ternary == TernaryConfig(mixer=False, mlp=False)
    packed = {
        n for n in PLACES if isinstance(leaf(model.params, f"blk.0.{n}.weight"), PackedTernary)
    }
    assert packed == {"attn_output", "ffn_gate", "ffn_up"}
    assert model.description.endswith("; 4 ternary tensors with many scales, in bfloat16")
    assert_loaded(model.params, values)
    hidden = transformer.read(model.config, model.params, jnp.arange(6)[None])
    assert np.isfinite(np.asarray(hidden, np.float32)).all()


def test_stretched_rope(tmp_path: Path):
    values = weights("llama", dim=64)
    path = tmp_path / "a.gguf"
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config = gguf_model.load(write_model(path, "llama", values, **linear)).config
    assert config.rope_scaling == RopeScalingConfig("linear", 4.0)
    zero = {"llama.rope.scaling.factor": 0.0}
    config = gguf_model.load(write_model(path, "llama", values, **zero)).config
    assert config.rope_scaling == RopeScalingConfig()
    llama3 = RopeScalingConfig("llama3", 8.0)
    theta = {"llama.rope.freq_base": 500_000.0}
    plain, stretched = (
        rope.frequencies(32, 500_000.0, scaling) for scaling in (RopeScalingConfig(), llama3)
    )
    factors = (plain / stretched).astype(np.float32)
    assert len(set(factors)) > 2
    both = values | {"rope_freqs.weight": factors}
    config = gguf_model.load(write_model(path, "llama", both, **theta)).config
    assert config.rope_scaling == llama3
    both["rope_freqs.weight"] = np.linspace(1, 8, 16, dtype=np.float32)
    with pytest.raises(DataError, match=r"factors in rope_freqs\.weight aren't those of Llama 3"):
        gguf_model.load(write_model(path, "llama", both, **theta))


def test_the_chat_template(tmp_path: Path):
    values = weights("llama")
    key = "tokenizer.chat_template"
    model = gguf_model.load(write_model(tmp_path / "a.gguf", "llama", values, **{key: "{{ a }}"}))
    assert model.chat_template == "{{ a }}"
    wrong = {key: "{{ 'Human: ' + m + '\n\nBITNETAssistant: ' + eos_token }}"}
    model = gguf_model.load(write_model(tmp_path / "b.gguf", "llama", values, **wrong))
    assert model.chat_template == BITNET_2B4T


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "gemma"}, "general.architecture is 'gemma'"),
    "adapter": ({"general.type": "adapter"}, "general.type is 'adapter'"),
    "split": ({"split.count": 2}, "split.count says that it is one of several"),
    "missing": ({"llama.block_count": None}, "entry llama.block_count is missing"),
    "no number": ({"llama.block_count": "2"}, "llama.block_count is '2'"),
    "zero": ({"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
    "a truth": ({"llama.block_count": True}, "llama.block_count is True"),
    "not finite": ({"llama.rope.freq_base": float("inf")}, "llama.rope.freq_base is inf"),
    "heads": ({"llama.attention.head_count_kv": 3}, "its metadata contradict each other"),
    "per block": (
        {"llama.attention.head_count": np.array([2, 4], np.int32)},
        "llama.attention.head_count is an array of 2",
    ),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count is 8"),
    "part of a head": ({"llama.rope.dimension_count": 2}, "llama.rope.dimension_count is 2"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
    "too many blocks": ({"llama.block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
    "2^31 blocks": ({"llama.block_count": 2**31}, "llama.block_count is 2147483648"),
    "2^30 heads": (
        {"llama.attention.head_count": 2**30, "llama.attention.key_length": 4},
        "tensor blk.0.attn_q.weight is [8, 8]",
    ),
    "too few blocks": ({"llama.block_count": 1}, "tensor blk.1.attn_k.weight isn't part"),
    "width": ({"llama.feed_forward_length": 17}, "blk.0.ffn_gate.weight is [16, 8], not [17, 8]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_named(tmp_path: Path, case: str):
    changes, message = REFUSED[case]
    path = tmp_path / "a.gguf"
    values = weights("llama")
    tensors = [
        NewTensor(name, value.shape, Type.F32, functools.partial(list, [value]))
        for name, value in values.items()
    ]
    write(path, gguf_files.metadata("llama", values, **changes), tensors)
    with pytest.raises(DataError) as caught:
        gguf_model.load(path)
    assert str(path) in caught.value.what
    assert message in caught.value.what


def test_more_tokens_than_rows_are_refused(tmp_path: Path):
    values = weights("llama")
    path = tmp_path / "a.gguf"
    tensors = [
        NewTensor(name, value.shape, Type.F32, functools.partial(list, [value]))
        for name, value in (values | {"token_embd.weight": np.ones((9, 8), np.float32)}).items()
    ]
    write(path, gguf_files.metadata("llama", values), tensors)
    with pytest.raises(DataError, match=r"vocabulary has 26\d tokens\n.*embd\.weight has 9 rows"):
        gguf_model.load(path)


def test_the_code_3_names_the_tensor(tmp_path: Path):
    values = ternary(weights("bitnet", dim=128, hidden=128, blocks=1))
    path = write_i2_s_model(tmp_path / "a.gguf", "bitnet", values)
    start = GGUFFile(path).tensors["blk.0.ffn_up.weight"].start
    data = bytearray(path.read_bytes())
    data[start + 40] |= 0b11
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"tensor blk\.0\.ffn_up\.weight can't be used: it holds the code 3"
    ):
        gguf_model.load(path)


def test_values_that_are_not_finite_name_the_tensor(tmp_path: Path):
    for name in ("blk.1.ffn_up.weight", "blk.0.attn_norm.weight", "token_embd.weight"):
        values = weights("llama")
        values[name][..., 3] = np.inf
        path = write_model(tmp_path / "a.gguf", "llama", values)
        with pytest.raises(DataError, match=f"tensor {name} can't be used"):
            gguf_model.load(path)

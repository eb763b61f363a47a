"""Checkpoints in the names and shapes of ttt-lm-pytorch, against the model written out in numpy.

The authors' code isn't part of the tests; docs/huggingface.md says how it was compared with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitttt_jax.config import TTTConfig
from bitttt_jax.errors import DataError
from bitttt_jax.interop import huggingface
from tests.interop import samples
from tests.interop.test_huggingface import TOKENS, assert_close, logits
from tests.models import reference
from tests.models import samples as models

VALUES = {
    "architectures": ["TTTForCausalLM"],
    "model_type": "ttt",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mini_batch_size": 4,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}

ON = {"use_gate": True, "share_qk": True, "pre_conv": True}
NAMES = {
    "mixer_norm/scale": "seq_norm.weight",
    "mlp_norm/scale": "ffn_norm.weight",
    "pre_conv_norm/scale": "conv.norm.weight",
    "pre_conv/bias": "conv.conv.bias",
    "mixer/query_conv/bias": "seq_modeling_block.conv_q.bias",
    "mixer/key_conv/bias": "seq_modeling_block.conv_k.bias",
    "mixer/post_norm/scale": "seq_modeling_block.post_norm.weight",
    "mixer/post_norm/bias": "seq_modeling_block.post_norm.bias",
    "mixer/fast_norm/scale": "seq_modeling_block.ttt_norm_weight",
    "mixer/fast_norm/bias": "seq_modeling_block.ttt_norm_bias",
    "mixer/token_scale": "seq_modeling_block.learnable_token_idx",
    "mixer/fast/w1": "seq_modeling_block.W1",
    "mixer/fast/w2": "seq_modeling_block.W2",
}
TRANSPOSED = {
    "mixer/query_key/kernel": "seq_modeling_block.q_proj.weight",
    "mixer/query/kernel": "seq_modeling_block.q_proj.weight",
    "mixer/key/kernel": "seq_modeling_block.k_proj.weight",
    "mixer/value/kernel": "seq_modeling_block.v_proj.weight",
    "mixer/gate/kernel": "seq_modeling_block.g_proj.weight",
    "mixer/output/kernel": "seq_modeling_block.o_proj.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
MORE_DIMENSIONS = {
    "pre_conv/kernel": ("conv.conv.weight", lambda kernel_WD: kernel_WD.T[:, None]),
    "mixer/query_conv/kernel": ("seq_modeling_block.conv_q.weight", lambda w: w.T[:, None]),
    "mixer/key_conv/kernel": ("seq_modeling_block.conv_k.weight", lambda w: w.T[:, None]),
    "mixer/learning_rate/kernel": (
        "seq_modeling_block.learnable_ttt_lr_weight",
        lambda kernel_DH: kernel_DH.T[:, None],
    ),
    "mixer/learning_rate/bias": (
        "seq_modeling_block.learnable_ttt_lr_bias",
        lambda bias_H: bias_H[:, None],
    ),
    "mixer/fast/b1": ("seq_modeling_block.b1", lambda bias_HF: bias_HF[:, None]),
    "mixer/fast/b2": ("seq_modeling_block.b2", lambda bias_HF: bias_HF[:, None]),
}


def tensors_of(params: Any) -> dict[str, np.ndarray]:
    tensors = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    if "head" in params:
        tensors["lm_head.weight"] = params["head"]["kernel"].T
    stacked = params["blocks"]["block_0"]
    writers = {ours: (name, lambda x: x) for ours, name in NAMES.items()}
    writers |= {ours: (name, lambda x: x.T) for ours, name in TRANSPOSED.items()}
    writers |= MORE_DIMENSIONS
    for layer in range(2):
        for ours, (name, change) in writers.items():
            if (value := samples.leaf(stacked, ours)) is not None:
                tensors[f"model.layers.{layer}.{name}"] = change(value[layer])
    return {name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()}


@pytest.mark.parametrize("inner", ["linear", "mlp"])
@pytest.mark.parametrize(
    "switches",
    [{}, ON, {"use_gate": True}, {"share_qk": True}, {"pre_conv": True, "use_gate": True}],
    ids=lambda switches: "-".join(switches) or "none",
)
def test_every_switch_gives_the_model_of_the_formulas(
    tmp_path: Path, inner: str, switches: dict[str, bool]
):
    on = lambda name: "on" if switches.get(name) else "off"
    config = models.config(
        mixers=(f"ttt_{inner}",),
        tie_embeddings=inner == "mlp",
        ttt={
            "mlp_ratio": 4,
            "gate": on("use_gate"),
            "share_qk": on("share_qk"),
            "pre_conv": on("pre_conv"),
            "linear_lr": 0.7,
            "mlp_lr": 0.7,
            "rope_theta": 100.0,
            "conv_width": 3,
        },
    )
    params = models.params(config)
    values = VALUES | switches | {"ttt_layer_type": inner, "ttt_base_lr": 0.7}
    values |= {"tie_word_embeddings": inner == "mlp", "rope_theta": 100.0, "conv_kernel": 3}
    folder = samples.write(tmp_path, values, tensors_of(params))
    model = huggingface.load(folder, "float32")
    assert model.context is None
    assert_close(logits(model), reference.logits(config, params, TOKENS))


def test_what_is_not_given_is_as_in_the_authors_class(tmp_path: Path):
    config = models.config(
        mixers=("ttt_linear",), ttt={"mini_batch": 16, "backbone": "transformer"}
    )
    values = {n: v for n, v in VALUES.items() if n != "mini_batch_size"} | {"rms_norm_eps": None}
    folder = samples.write(tmp_path, values, tensors_of(models.params(config)))
    loaded = huggingface.load(folder).config
    assert loaded.tie_embeddings and loaded.norm_eps == 1e-6 and loaded.mixers == ("ttt_linear",)
    switches = TTTConfig(gate="off", share_qk="off", pre_conv="off", linear_lr=1.0, mlp_lr=1.0)
    assert loaded.ttt == switches


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ttt_layer_type": "lstm"}, "ttt_layer_type is 'lstm'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_gate": True}, "lacks the tensor .*g_proj"),
        ({"mini_batch_size": 8}, "learnable_token_idx has the shape"),
        ({"num_attention_heads": 3}, "describes no model"),
        ({"use_gate": "yes"}, "use_gate is 'yes'"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, fields: dict[str, Any], message: str):
    config = models.config(mixers=("ttt_linear",), ttt={"backbone": "transformer"})
    folder = samples.write(tmp_path, VALUES | fields, tensors_of(models.params(config)))
    with pytest.raises(DataError, match=message):
        huggingface.load(folder)

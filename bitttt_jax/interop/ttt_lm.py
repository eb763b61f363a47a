"""The checkpoints of the authors of TTT-Linear and TTT-MLP (test-time-training/ttt-lm-pytorch).

Their `model_type: ttt` with each of its switches: the inner model (`ttt_layer_type`), the gate
(`use_gate`), one projection of queries and keys with a convolution for each (`share_qk`), and a
convolution before each block (`pre_conv`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.interop import chat_templates, fields, tokenizers
from bitttt_jax.interop.arrays import Arrays, vector
from bitttt_jax.interop.foreign import ForeignModel, WeightType
from bitttt_jax.interop.ttt_lm_config import MLP_RATIO, read_config
from bitttt_jax.interop.vocabulary import read_vocabulary
from bitttt_jax.interop.weights import Weights
from bitttt_jax.models import parameters


def load(folder: Path, weights: WeightType = "bfloat16") -> ForeignModel:
    """Loads a checkpoint.

    Args:
      folder: with config.json, safetensors and a tokenizer.
      weights: how projections, embedding and head are kept; all else is float32.

    Raises:
      DataError: a file is missing or damaged, or a setting isn't known here.
    """
    arrays = Arrays(weights)
    config = arrays.computed(read_config(fields.read_json(folder / "config.json")))
    tensors = Weights(folder)
    tokenizer = tokenizers.from_folder(folder)
    params = _Reader(tensors, arrays, config).params()
    tensors.check_all_read()
    return ForeignModel(
        config,
        params,
        tokenizer,
        f"ttt-lm-pytorch {config.mixers[0]}, weights {weights}",
        None,
        chat_templates.from_folder(folder, tokenizer),
    )


class _Reader:
    """Reads the parameters."""

    def __init__(self, tensors: Weights, arrays: Arrays, config: ModelConfig):
        self._tensors, self._arrays, self._config = tensors, arrays, config

    def params(self) -> dict[str, Any]:
        """All of them, group by group."""
        config = self._config
        params: dict[str, Any] = {
            **read_vocabulary(self._tensors, self._arrays, config),
            "final_norm": self._norm("model.norm"),
        }
        for index in range(config.num_layers):
            params[parameters.group_name(index)] = {"block_0": self._block(f"model.layers.{index}")}
        return params

    def _block(self, name: str) -> dict[str, Any]:
        D, F = self._config.dim, self._config.mlp_dim
        block: dict[str, Any] = {
            "mixer_norm": self._norm(f"{name}.seq_norm"),
            "mixer": self._mixer(f"{name}.seq_modeling_block"),
            "mlp_norm": self._norm(f"{name}.ffn_norm"),
            "mlp": {
                "gate": self._kernel(f"{name}.mlp.gate_proj", F, D),
                "up": self._kernel(f"{name}.mlp.up_proj", F, D),
                "down": self._kernel(f"{name}.mlp.down_proj", D, F),
            },
        }
        if self._config.ttt.has_pre_conv:
            block["pre_conv_norm"] = self._norm(f"{name}.conv.norm")
            block["pre_conv"] = self._convolution(f"{name}.conv.conv")
        return block

    def _mixer(self, name: str) -> dict[str, Any]:
        config, ttt = self._config, self._config.ttt
        D, H, K = config.dim, config.num_heads, config.width_per_head
        square = lambda part: self._kernel(f"{name}.{part}", D, D)
        read = lambda part, *shape: self._tensors.vector(f"{name}.{part}", *shape)
        mixer: dict[str, Any] = {
            "value": square("v_proj"),
            "output": square("o_proj"),
            "post_norm": {
                "scale": vector(read("post_norm.weight", D)),
                "bias": vector(read("post_norm.bias", D)),
            },
            "fast_norm": {
                "scale": vector(read("ttt_norm_weight", H, K)),
                "bias": vector(read("ttt_norm_bias", H, K)),
            },
            "learning_rate": {
                "kernel": vector(read("learnable_ttt_lr_weight", H, 1, D)[:, 0].T),
                "bias": vector(read("learnable_ttt_lr_bias", H, 1)[:, 0]),
            },
            "token_scale": vector(read("learnable_token_idx", ttt.mini_batch)),
            "fast": self._fast(read),
        }
        if ttt.shares_qk:
            mixer["query_key"] = square("q_proj")
            mixer["query_conv"] = self._convolution(f"{name}.conv_q")
            mixer["key_conv"] = self._convolution(f"{name}.conv_k")
        else:
            mixer |= {"query": square("q_proj"), "key": square("k_proj")}
        if ttt.has_gate:
            mixer["gate"] = square("g_proj")
        return mixer

    def _fast(self, read: Any) -> dict[str, jax.Array]:
        """Initial fast weights."""
        H, K = self._config.num_heads, self._config.width_per_head
        is_mlp = self._config.mixers[0] == "ttt_mlp"
        hidden = K * MLP_RATIO if is_mlp else K
        fast = {"w1": read("W1", H, K, hidden), "b1": read("b1", H, 1, hidden)[:, 0]}
        if is_mlp:
            fast |= {"w2": read("W2", H, hidden, K), "b2": read("b2", H, 1, K)[:, 0]}
        return {name: vector(values) for name, values in fast.items()}

    def _kernel(self, name: str, N: int, K: int) -> dict[str, Any]:
        return {"kernel": self._arrays.kernel(self._tensors.floats(f"{name}.weight", N, K))}

    def _convolution(self, name: str) -> dict[str, jax.Array]:
        D, taps = self._config.dim, self._config.ttt.conv_width
        kernel_D1W = self._tensors.vector(f"{name}.weight", D, 1, taps)
        bias = self._tensors.vector(f"{name}.bias", D)
        return {"kernel": vector(kernel_D1W[:, 0].T), "bias": vector(bias)}

    def _norm(self, name: str) -> dict[str, jax.Array]:
        scale: np.ndarray = self._tensors.vector(f"{name}.weight", self._config.dim)
        return {"scale": vector(scale)}

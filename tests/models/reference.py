"""The whole model in float64 numpy, document by document.

Written from the papers' formulas; shares no code with the package but the names of parameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bitttt_jax.config import ModelConfig
from tests.ttt import reference as ttt


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def rms_norm(x: np.ndarray, params: Any, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * params["scale"]


def convolution(x_TD: np.ndarray, params: Any) -> np.ndarray:
    kernel = params["kernel"]
    padded = np.vstack([np.zeros((len(kernel) - 1, x_TD.shape[1])), x_TD])
    windows = [np.sum(padded[t : t + len(kernel)] * kernel, axis=0) for t in range(len(x_TD))]
    return np.array(windows) + params["bias"]


def rotate(x_THK: np.ndarray, position_T: np.ndarray, theta: float, real, imaginary) -> np.ndarray:
    """Pairs (real[i], imaginary[i]) of channels as complex numbers, turned."""
    frequency = theta ** (-np.arange(len(real)) / len(real))
    turn = np.exp(1j * position_T[:, None] * frequency)[:, None]
    number = (x_THK[..., real] + 1j * x_THK[..., imaginary]) * turn
    y = np.empty_like(x_THK)
    y[..., real], y[..., imaginary] = number.real, number.imag
    return y


def quantise(x: np.ndarray) -> np.ndarray:
    """8 bits a token."""
    scale = np.abs(x).max(-1, keepdims=True) / 127
    return np.round(x / scale) * scale


def linear(config: ModelConfig, is_ternary: bool, params: Any, x_TD: np.ndarray) -> np.ndarray:
    kernel = params["kernel"]
    bias = params.get("bias", 0)
    if not is_ternary:
        return x_TD @ kernel + bias
    if config.ternary.inner_norm:
        x_TD = rms_norm(x_TD, params["norm"], config.ternary.inner_norm_eps or config.norm_eps)
    mean = np.abs(kernel).mean()
    codes = np.where(kernel > mean / 2, 1, np.where(kernel < -mean / 2, -1, 0))
    return (quantise(x_TD) if config.ternary.activations else x_TD) @ (codes * mean) + bias


def attention(config: ModelConfig, params: Any, x_TD: np.ndarray) -> np.ndarray:
    T, K = len(x_TD), config.width_per_head
    project = lambda name: linear(config, config.ternary.mixer, params[name], x_TD)
    assert config.rope_scaling.kind != "llama3"
    position = np.arange(T) / config.rope_scaling.factor
    low, high = np.arange(K // 2), np.arange(K // 2, K)
    q, k, v = (project(name).reshape(T, -1, K) for name in ("query", "key", "value"))
    q, k = (rotate(y, position, config.rope_theta, low, high) for y in (q, k))
    mixed = np.zeros_like(q)
    for t in range(T):
        first = max(0, t + 1 - (config.window or T))
        for head in range(config.num_heads):
            group = head * config.kv_heads // config.num_heads
            score = k[first : t + 1, group] @ q[t, head] / np.sqrt(K)
            weight = np.exp(score - score.max())
            mixed[t, head] = weight @ v[first : t + 1, group] / weight.sum()
    return mixed.reshape(T, -1)


def learn_and_read(config: ModelConfig, mixer: str, params: Any, x_TD: np.ndarray) -> np.ndarray:
    T, H, K = len(x_TD), config.num_heads, config.width_per_head
    b = config.ttt.mini_batch
    project = lambda name: linear(config, config.ternary.mixer, params[name], x_TD)
    if "query_key" in params:
        shared = project("query_key")
        q, k = convolution(shared, params["query_conv"]), convolution(shared, params["key_conv"])
    else:
        q, k = project("query"), project("key")
    q, k, v = (y.reshape(T, H, K) for y in (q, k, project("value")))
    even, odd = np.arange(0, K, 2), np.arange(1, K, 2)
    q, k = (rotate(y, np.arange(T) % b, config.ttt.rope_theta, even, odd) for y in (q, k))
    base = config.ttt.linear_lr if mixer == "ttt_linear" else config.ttt.mlp_lr
    gate = params["learning_rate"]
    rate_TH = base * sigmoid(x_TD @ gate["kernel"] + gate["bias"]) / K
    token_scale_b = np.maximum(0, 1 / np.arange(1, b + 1) + params["token_scale"])
    mixed = np.zeros_like(q)
    for h in range(H):
        fast = {name: w[h] for name, w in params["fast"].items()}
        norm = params["fast_norm"]
        head = ttt.Head(fast, norm["scale"][h], norm["bias"][h], token_scale_b)
        mixed[:, h], *_ = ttt.read_head(head, q[:, h], k[:, h], v[:, h], rate_TH[:, h])
    mixed = ttt.layer_norm(mixed.reshape(T, -1), **params["post_norm"])
    if "gate" in params:
        mixed = ttt.gelu(project("gate")) * mixed
    return mixed


def block(config: ModelConfig, mixer: str, params: Any, x_TD: np.ndarray) -> np.ndarray:
    def norm(name, x, of=params):  # where there is one
        return rms_norm(x, of[name], config.norm_eps) if name in of else x

    if "pre_conv" in params:
        x_TD = x_TD + convolution(norm("pre_conv_norm", x_TD), params["pre_conv"])
    mix, mlp = params["mixer"], params["mlp"]
    normed = norm("mixer_norm", x_TD)
    if mixer == "attention":
        mixed = attention(config, mix, normed)
    else:
        mixed = learn_and_read(config, mixer, mix, normed)
    mixed = norm("sub_norm", mixed, of=mix)
    x_TD = x_TD + linear(config, config.ternary.mixer, mix["output"], mixed)

    project = lambda name, x: linear(config, config.ternary.mlp, mlp[name], x)
    normed = norm("mlp_norm", x_TD)
    gate = project("gate", normed)
    gate = silu(gate) if config.mlp == "swiglu" else np.maximum(gate, 0) ** 2
    hidden = norm("sub_norm", gate * project("up", normed), of=mlp)
    return x_TD + project("down", hidden)


def hidden(config: ModelConfig, params: Any, token_T: np.ndarray) -> np.ndarray:
    """Hidden states `[T, D]` of one document; parameters as the package stacks them, in float64."""
    x_TD = params["embed"]["embedding"][token_T]
    for layer in range(config.num_layers):
        group, place = divmod(layer, len(config.mixers))
        own = select(params["blocks"][f"block_{place}"], group)
        x_TD = block(config, config.mixers[place], own, x_TD)
    return rms_norm(x_TD, params["final_norm"], config.norm_eps)


def logits(config: ModelConfig, params: Any, token_T: np.ndarray) -> np.ndarray:
    """Logits `[T, V]` of one document."""
    x_TD = hidden(config, params, token_T)
    if config.tie_embeddings:
        return x_TD @ params["embed"]["embedding"].T
    return x_TD @ params["head"]["kernel"]


def select(tree: Any, index: int) -> Any:
    """One entry of every array's first dimension."""
    if isinstance(tree, dict):
        return {name: select(child, index) for name, child in tree.items()}
    return np.asarray(tree)[index]

"""Test-time training written out token by token in numpy, from the paper's formulas.

Shares no code with the package and takes no autodiff: the gradient of the inner loss goes through
the full Jacobian of the LayerNorm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Fast = dict[str, np.ndarray]


class Head(NamedTuple):
    """Outer parameters of one head."""

    fast: Fast
    scale: np.ndarray
    bias: np.ndarray
    token_scale_b: np.ndarray


def layer_norm(z: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return scale * (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6) + bias


def layer_norm_jacobian(z: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`J[i, j] = d LN(z)_i / d z_j` of one vector."""
    width, s = len(z), np.sqrt(z.var() + 1e-6)
    standard = (z - z.mean()) / s
    centre = np.eye(width) - np.full((width, width), 1 / width)
    return scale[:, None] * (centre - np.outer(standard, standard) / width) / s


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    c = np.sqrt(2 / np.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)


def predict(fast: Fast, x: np.ndarray) -> np.ndarray:
    hidden = x @ fast["w1"] + fast["b1"]
    return gelu(hidden) @ fast["w2"] + fast["b2"] if "w2" in fast else hidden


def loss(fast: Fast, head: Head, k: np.ndarray, v: np.ndarray) -> float:
    return 0.5 * np.sum((layer_norm(predict(fast, k), head.scale, head.bias) - (v - k)) ** 2)


def loss_gradient(fast: Fast, head: Head, k: np.ndarray, v: np.ndarray, bare: bool = False) -> Fast:
    """Gradient of the inner loss of one token; `bare` has no LayerNorm and the target v."""
    z = predict(fast, k)
    if bare:
        dz = z - v
    else:
        residual = layer_norm(z, head.scale, head.bias) - (v - k)
        dz = layer_norm_jacobian(z, head.scale).T @ residual
    if "w2" not in fast:
        return {"w1": np.outer(k, dz), "b1": dz}
    hidden = k @ fast["w1"] + fast["b1"]
    dh = (fast["w2"] @ dz) * gelu_slope(hidden)
    return {"w1": np.outer(k, dh), "b1": dh, "w2": np.outer(gelu(hidden), dz), "b2": dz}


def read_head(
    head: Head, q_TK: np.ndarray, k_TK: np.ndarray, v_TK: np.ndarray, rate_T: np.ndarray, bare=False
) -> tuple[np.ndarray, Fast, Fast]:
    """One document: outputs, fast weights at the start of the open mini-batch, and its gradients.

    Within a mini-batch all gradients are taken at its start and `W_i = W_start - c_i * G_i`.
    """
    start = dict(head.fast)
    gradient = {name: np.zeros_like(w) for name, w in start.items()}
    outputs = []
    for t, (q, k, v, rate) in enumerate(zip(q_TK, k_TK, v_TK, rate_T, strict=True)):
        place = t % len(head.token_scale_b)
        step = loss_gradient(start, head, k, v, bare)
        gradient = {name: g + rate * step[name] for name, g in gradient.items()}
        moved = {name: w - head.token_scale_b[place] * gradient[name] for name, w in start.items()}
        z = predict(moved, q)
        outputs.append(z if bare else q + layer_norm(z, head.scale, head.bias))
        if place == len(head.token_scale_b) - 1:
            start = moved
            gradient = {name: np.zeros_like(w) for name, w in start.items()}
    return np.array(outputs).reshape(q_TK.shape), start, gradient


def read(learner: Any, views: Any) -> tuple[np.ndarray, list[list[tuple[Fast, Fast]]]]:
    """Every head of every row of a batch: outputs `[B, T, H, K]`, and `states[row][head]`."""
    fast = {name: np.asarray(w, np.float64) for name, w in learner.fast.items()}
    scale, bias = (np.asarray(x, np.float64) for x in learner.norm)
    token_scale_b = np.asarray(learner.token_scale_b, np.float64)
    query, key, value, rate = (np.asarray(x, np.float64) for x in views)
    B, _, H, _ = query.shape
    output, states = np.zeros_like(query), []
    for row in range(B):
        states.append([])
        for h in range(H):
            head = Head({n: w[h] for n, w in fast.items()}, scale[h], bias[h], token_scale_b)
            tokens = (x[row, :, h] for x in (query, key, value, rate))
            output[row, :, h], *state = read_head(head, *tokens)
            states[row].append(tuple(state))
    return output, states

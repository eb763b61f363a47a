"""A training of seconds, as values on top of the preset `debug`."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "steps": 4,
    "data.validation_fraction": 0.4,
    "data.seq_len": 32,
    "model.dim": 16,
    "model.mlp_dim": 32,
    "model.num_layers": 1,
    "model.mixers": "ttt_linear",
    "model.compute_dtype": "float32",
    "model.ttt.mini_batch": 8,
    "optim.warmup_steps": 1,
    "checkpoint.every_steps": 2,
    "eval.every_steps": 0,
    "eval.sample_prompt": "",
    "log.health_every_steps": 0,
}

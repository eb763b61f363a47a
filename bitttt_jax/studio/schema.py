"""The form's fields, drawn from the configuration's schema, its help texts and its checks."""

from __future__ import annotations

import functools
from typing import Any

from bitttt_jax.config import TrainConfig
from bitttt_jax.config.sizes import SIZES
from bitttt_jax.config_loading import (
    FLAG_PREFIX,
    Key,
    apply_overrides,
    describe,
    load_config,
    preset_names,
    preset_summary,
)
from bitttt_jax.errors import ConfigError
from bitttt_jax.studio.form import plain, values_between

_BASIC = frozenset({
    "steps", "max_minutes", "data.sources.0.path", "data.sources.0.kind", "data.tokenizer.kind",
    "data.tokenizer.vocab_size", "data.seq_len", "data.batch_size", "model.mixers", "model.dim",
    "model.num_layers", "model.ternary.mixer", "model.ternary.mlp", "optim.lr",
    "eval.sample_prompt",
})  # fmt: skip
# So that no other field limits the one whose bounds are looked for.
_UNCONNECTED = {
    "optim.warmup_steps": 0, "model.head_dim": 2, "data.tokenizer.kind": "bpe",
}  # fmt: skip
_LEAST = (-1, 0, 1, 258)
_TYPES = {"INT": "int", "FLOAT": "float", "TEXT": "str", "True|False": "bool"}
_WORDS = {
    "lr": "learning rate", "mlp": "MLP", "qkv": "QKV", "rope": "RoPE", "ttt": "TTT", "bpe": "BPE",
    "eps": "epsilon", "dim": "width", "num": "number of", "init": "initial", "std": "deviation",
    "seq": "sequence", "len": "length", "kv": "key/value", "dtype": "type", "conv": "convolution",
    "fsdp": "FSDP",
}  # fmt: skip


@functools.cache
def schema() -> dict[str, Any]:
    """Fields, presets and sizes, as JSON values."""
    default = TrainConfig()
    presets = {name: load_config(name) for name in preset_names()}
    return {
        "fields": [_field(key) for key in describe(default)],
        "presets": [
            {
                "name": name,
                "summary": preset_summary(name),
                "values": values_between(default, config),
            }
            for name, config in presets.items()
        ],
        "sizes": [
            {"name": size.name, "label": size.label, "parameters": size.parameters}
            for size in SIZES
        ],
    }


def _field(key: Key) -> dict[str, Any]:
    is_list = key.type.endswith(",...")
    item = key.type.removesuffix(",...")
    kind = _TYPES.get(item, "choice")
    low, high = _bounds(key.name, kind) if kind in ("int", "float") and not is_list else (None,) * 2
    return {
        "key": key.name,
        "type": "list" if is_list else kind,
        "default": plain(key.value),
        "help": key.help,
        "min": low,
        "max": high,
        "choices": item.split("|") if kind == "choice" else None,
        "group": key.group,
        "advanced": key.name not in _BASIC,
        "title": _title(key.name),
    }


def _title(key: str) -> str:
    words = [_WORDS.get(word, word) for word in key.rpartition(".")[2].split("_")]
    text = " ".join(words)
    return text[0].upper() + text[1:]


def _bounds(key: str, kind: str) -> tuple[float | None, float | None]:
    """The least and greatest value that the checks take, as far as trying a few can tell.

    Values between them may be refused all the same, for what other fields say.
    """

    def takes(value: float) -> bool:
        values = _UNCONNECTED | {key: value}
        try:
            apply_overrides(TrainConfig(), [f"{FLAG_PREFIX}{k}={v}" for k, v in values.items()])
        except ConfigError:
            return False
        return True

    if kind == "float":
        low = 0 if not takes(-0.5) and takes(0.5) else None
        return low, 1 if takes(0.5) and not takes(1.5) else None
    return next((n for n in _LEAST if takes(n) and not takes(n - 1)), None), None

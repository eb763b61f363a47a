"""Writes a packed model with random weights, as `bitttt convert` would write a trained one.

    python -m benchmarks.random_model FOLDER PRESET VOCABULARY

Its tokenizer knows bytes only: for measurements, which take tokens as numbers.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from bitttt_jax.config_loading import load_config
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.inference import packed_model, speed


def main(argv: list[str]) -> None:
    """Writes the folder, and prints `null`."""
    folder, preset, vocab_size = argv
    config = load_config(preset)
    model = dataclasses.replace(config.model, vocab_size=int(vocab_size))
    packed_model.save(
        Path(folder),
        dataclasses.replace(config, model=model),
        speed.random_params(model, "int8"),
        Tokenizer.bytes(),
        step=0,
        layout="i2_s",
        table="int8",
        context=None,
        chat_template=None,
        card=f"# {Path(folder).name}\n\nRandom weights in the shape of {preset}.\n",
    )
    print("null")


if __name__ == "__main__":
    main(sys.argv[1:])

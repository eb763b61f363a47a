"""A GGUF file in transformers on the CPU: a prompt and steps, in the words of `bitttt bench`.

    python -m benchmarks.peers.transformers_model FILE.gguf ARGUMENTS

Weights become dense ones of a type. What is timed is the model's own call, with a cache of keys and
values, and the choice of the likeliest token: what `generate` does around them isn't counted.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import measure
from benchmarks.peers.llama_cpp import WARM_UP, times

_PACKAGES = ("transformers", "torch", "gguf", "numpy")


@torch.inference_mode()
def measure_model(
    path: Path, prefill: int, decode: int, threads: int, repeats: int, dtype: str
) -> dict[str, Any]:
    """Times prompts and steps.

    Args:
      path: the GGUF file.
      prefill: tokens of the prompt.
      decode: steps to time after it.
      threads: of the CPU.
      repeats: prompts to time.
      dtype: of weights and activations, as torch names it.
    """
    torch.set_num_threads(threads)
    started = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=getattr(torch, dtype),
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    load_s, vocab_size = time.perf_counter() - started, model.config.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocab_size, (1, prefill), np.int32)
    cache, token_BT = transformers.DynamicCache(config=model.config), torch.from_numpy(prompt)

    def read(token_BT: torch.Tensor) -> torch.Tensor:
        logits = model(token_BT, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1:].argmax(-1)

    def read_prompt() -> None:
        nonlocal cache, token_BT
        cache = transformers.DynamicCache(config=model.config)
        token_BT = read(torch.from_numpy(prompt).long())

    def step() -> None:
        nonlocal token_BT
        token_BT = read(token_BT)

    runs = [{"what": "prefill", "tokens": prefill} | times(read_prompt, repeats)]
    first = int(token_BT)
    runs.append({"what": "decode", "context": prefill} | times(step, decode))
    assert cache.get_seq_length() == prefill + decode + WARM_UP
    parameters = {(p.dtype, p.data_ptr()): p.nbytes for p in model.parameters()}
    return {
        "runs": [{"batch": 1} | run for run in runs],
        "load": {"seconds": load_s, "model_bytes": sum(parameters.values())},
        "first_token": first,
        "attention": model.config._attn_implementation,
        "versions": measure.versions(_PACKAGES),
        "peak_rss_mib": measure.peak_rss_mib(),
    }


def main(argv: list[str]) -> None:
    """Prints the numbers as a line of JSON."""
    print(json.dumps(measure_model(Path(argv[0]), **json.loads(argv[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])

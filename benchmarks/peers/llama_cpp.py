"""A packed model in llama.cpp: a prompt, and steps after contexts of several lengths.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary=llama-cpp-python llama-cpp-python gguf
    python -m benchmarks.packed --peer_python=PATH

The model has the shape of one of ours, as far as llama.cpp's architecture `bitnet` goes: the same
matrices, norms, grouped queries and tied head. It is built of random TQ2_0 blocks (ternary, a scale
for every 256 weights), and of random Q6_K blocks for the table. `DIFFERENCES` has the rest.

`benchmarks.packed` runs this module with the Python of the peer, which needs neither jax nor the
package.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

DIFFERENCES = (
    "SiLU instead of squared ReLU; scales of weights and activations for every 256 values instead "
    "of one a matrix and one a token; embedding and head in Q6_K instead of int8; keys and values "
    "in float16 instead of bfloat16"
)
_BLOCK = 256  # values, of both types
_BATCH = 512
WARM_UP = 2
_PACKAGES = ("llama-cpp-python", "gguf", "numpy")


def random_tq2_0(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Ternary weights: bytes `[outputs, inputs / 256 * 66]`, codes and then a float16 scale."""
    valid = np.array([c for c in range(256) if not c & c >> 1 & 0x55], np.uint8)
    blocks = (outputs, inputs // _BLOCK)
    codes = valid[rng.integers(0, len(valid), (*blocks, _BLOCK // 4), np.uint8)]
    return _joined([codes, _scale(blocks, 0.02)])


def random_q6_k(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """A table: bytes `[outputs, inputs / 256 * 210]`, 6-bit values, their scales, and theirs."""
    blocks = (outputs, inputs // _BLOCK)
    draw = lambda count: rng.integers(0, 256, (*blocks, count), np.uint8)
    return _joined([draw(_BLOCK * 3 // 4), draw(_BLOCK // 16), _scale(blocks, 1e-5)])


def _scale(blocks: tuple[int, int], value: float) -> np.ndarray:
    return np.full((*blocks, 1), value, np.float16).view(np.uint8)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(parts, axis=-1)
    return joined.reshape(len(joined), -1)


def write_model(path: Path, shape: dict[str, Any]) -> None:
    """Writes a GGUF file of the architecture `bitnet` with random weights.

    Args:
      path: the file; it is there whole or not at all.
      shape: fields of our ModelConfig.
    """
    import gguf

    partial = path.with_name(f".{path.name}")
    writer = gguf.GGUFWriter(partial, "bitnet")
    D, F, V, L = (shape[key] for key in ("dim", "mlp_dim", "vocab_size", "num_layers"))
    width = D // shape["num_heads"]
    writer.add_vocab_size(V)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(D)
    writer.add_block_count(L)
    writer.add_feed_forward_length(F)
    writer.add_head_count(shape["num_heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    writer.add_tokenizer_model("none")  # tokens are numbers here
    rng = np.random.default_rng(0)
    types = gguf.GGMLQuantizationType
    writer.add_tensor("token_embd.weight", random_q6_k(rng, D, V), raw_dtype=types.Q6_K)
    writer.add_tensor("output_norm.weight", np.ones(D, np.float32))
    kv = width * shape["kv_heads"]
    matrices = {
        **{"attn_q": (D, D), "attn_k": (D, kv), "attn_v": (D, kv), "attn_output": (D, D)},
        **{"ffn_gate": (D, F), "ffn_up": (D, F), "ffn_down": (F, D)},
    }
    norms = {"attn_norm": D, "attn_sub_norm": D, "ffn_norm": D, "ffn_sub_norm": F}
    for layer in range(L):
        for name, size in norms.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(size, np.float32))
        for name, (inputs, outputs) in matrices.items():
            blocks = random_tq2_0(rng, inputs, outputs)
            writer.add_tensor(f"blk.{layer}.{name}.weight", blocks, raw_dtype=types.TQ2_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


class Model:
    """A loaded model and one sequence.

    Args:
      path: the GGUF file.
      slots: most tokens of the sequence.
      threads: of the CPU.
      extra_buffers: whether weights may be repacked for this CPU, as is the default.
    """

    def __init__(self, path: Path, slots: int, threads: int, extra_buffers: bool = True):
        import llama_cpp

        self._api = llama_cpp
        self._log = llama_cpp.llama_log_callback(lambda *_: None)  # kept alive here
        llama_cpp.llama_log_set(self._log, None)
        started = time.perf_counter()
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = extra_buffers
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), loading)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = slots, _BATCH, _BATCH
        params.n_threads = params.n_threads_batch = threads
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {path}")
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self.bytes = int(llama_cpp.llama_model_size(self._model))
        self.load_seconds = time.perf_counter() - started

    def read(self, token_T: np.ndarray) -> int:
        """Reads tokens; the likeliest next one (0 after none)."""
        likeliest = 0
        for first in range(0, len(token_T), _BATCH):
            part = token_T[first : first + _BATCH]
            tokens = (ctypes.c_int32 * len(part))(*part)  # the batch points to them
            batch = self._api.llama_batch_get_one(tokens, len(part))
            if self._api.llama_decode(self._context, batch):
                raise RuntimeError("llama_decode failed")
            logits = self._api.llama_get_logits_ith(self._context, -1)  # waits for them
            likeliest = int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
        return likeliest

    def keep(self, count: int) -> None:
        """Forgets all tokens but the first ones."""
        self._api.llama_memory_seq_rm(self._memory, 0, count, -1)


def quantize_model(path: Path, source: str) -> None:
    """Writes a GGUF file as Q8_0, of whatever types it was."""
    import llama_cpp

    partial = path.with_name(f".{path.name}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), str(partial).encode(), params):
        raise RuntimeError(f"llama.cpp can't quantise {source}")
    partial.replace(path)


def measure_model(
    path: Path,
    prefill: int,
    contexts: list[int],
    decode: int,
    threads: int,
    repeats: int,
    extra_buffers: bool = True,
) -> dict[str, Any]:
    """Times prompts and steps, and tells of them in the words of `bitttt bench`.

    Args:
      path: the GGUF file.
      prefill: tokens of the prompt.
      contexts: lengths after which steps are timed, the prompt's or longer.
      decode: steps to time after each.
      threads: of the CPU.
      repeats: prompts to time.
      extra_buffers: whether weights may be repacked for this CPU, as is the default.
    """
    import llama_cpp

    model = Model(path, max(contexts) + decode + WARM_UP, threads, extra_buffers)
    token_T = np.random.default_rng(0).integers(0, model.vocab_size, max(contexts), np.int32)

    def read_prompt() -> None:
        model.keep(0)
        model.read(token_T[:prefill])

    runs = [{"what": "prefill", "tokens": prefill} | times(read_prompt, repeats)]
    token, filled = 0, prefill

    def step() -> None:
        nonlocal token
        token = model.read(np.array([token], np.int32))

    for context in sorted(contexts):
        model.read(token_T[filled:context])
        runs.append({"what": "decode", "context": context} | times(step, decode))
        model.keep(context)
        filled = context
    return {
        "runs": [{"batch": 1} | run for run in runs],
        "load": {"seconds": model.load_seconds, "model_bytes": model.bytes},
        "versions": measure.versions(_PACKAGES),
        "system_info": llama_cpp.llama_print_system_info().decode().strip(),
        "peak_rss_mib": measure.peak_rss_mib(),
    }


def times(run: Callable[[], None], repeats: int) -> dict[str, float]:
    """Seconds of calls after two that warm up, in the words of `bitttt bench`."""
    seconds = []
    for _ in range(repeats + WARM_UP):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    found = measure.spread(seconds[WARM_UP:])
    return {"median": found["median"], "lower": found["q25"], "upper": found["q75"]} | {
        "count": found["count"]
    }


def main(argv: list[str]) -> None:
    """`write PATH SHAPE` and `quantize PATH SOURCE` make a model, `measure PATH ARGUMENTS` prints
    its numbers; arguments and numbers are JSON."""
    what, path, arguments = argv[0], Path(argv[1]), json.loads(argv[2])
    if what == "write":
        print(json.dumps(write_model(path, arguments)))
    elif what == "quantize":
        print(json.dumps(quantize_model(path, arguments)))
    else:
        print(json.dumps(measure_model(path, **arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])

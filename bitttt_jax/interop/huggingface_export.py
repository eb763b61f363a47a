"""Our models as Hugging Face folders, written whole or not at all, and compared before they count.

Attention models become Llama, Qwen2, Mistral or BitNet models, whichever class of transformers
computes the same function (`huggingface_target`); models with TTT are written as `dense` says, for
this program only.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.data import safetensors
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.interop import dense, export_tensors, huggingface, huggingface_target
from bitttt_jax.interop import huggingface_names as names
from bitttt_jax.interop.export_tensors import FloatType
from bitttt_jax.interop.foreign import ForeignModel
from bitttt_jax.interop.huggingface_config import Packing
from bitttt_jax.interop.huggingface_target import Form
from bitttt_jax.interop.vocabulary import EMBEDDING, HEAD
from bitttt_jax.interop.weights import INDEX_FILE, SINGLE_FILE
from bitttt_jax.models import parameters, transformer

Progress = Callable[[str, int, int], None]
"""Told an activity, and how much of how much is done."""

_COMPARED_TOKENS = 64
_MOST_DIFFERENCE = 0.05


@dataclasses.dataclass(frozen=True)
class Report:
    """What an export wrote."""

    files: dict[str, int]
    """Sizes in bytes, by name."""
    difference: float
    """Largest difference between a logit of the model and of what was read back, both computed in
    float32 with weights in the type that was written, as a share of the largest logit."""


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor to be written."""

    name: str
    make: Callable[[], np.ndarray]
    """Computes it; called when its file is written."""


def export(
    folder: Path,
    model: ForeignModel,
    form: Form = "hf",
    *,
    dtype: FloatType = "bfloat16",
    shard_bytes: int = 2_000_000_000,
    card: str = "",
    progress: Progress = lambda *_: None,
) -> Report:
    """Writes a model as a folder that transformers loads, or this program if it has TTT.

    Args:
      folder: where; must not exist.
      model: the model; its parameters latent or packed, groups stacked or not.
      form: of ternary weights.
      dtype: of other weights; norms, biases and all else that is computed in float32 stay float32.
      shard_bytes: size above which weights go into several files, with an index.
      card: more text for the model card.
      progress: is told how far it is.

    Raises:
      ConfigError: transformers has no such model, or the form can't hold it.
      DataError: it can't be written, or what is read back isn't the same model.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already", fix="another folder, or removing it")
    params = parameters.unstack(model.params) if "blocks" in model.params else model.params
    described, packing = huggingface_target.describe(model.config, form, dtype, model.context)
    if model.config.uses_ttt:
        tensors = list(_own_tensors(model.config, params, dtype))
    else:
        tensors = list(_llama_tensors(model.config, params, packing, dtype))
    described |= {"bos_token_id": model.tokenizer.bos_id, "eos_token_id": model.tokenizer.eos_id}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            _write_weights(partial, tensors, shard_bytes, progress)
            _write_json(partial / huggingface.CONFIG_FILE, described)
            _write_text_files(partial, model)
            difference = compare(model, huggingface.load(partial, dtype), dtype, progress)
            text = _card(folder.name, model, described, card)
            (partial / "README.md").write_text(text, encoding="utf-8")
            files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            partial.rename(folder)
    except OSError as error:
        raise DataError(f"{folder} can't be written", str(error), "another folder") from error
    return Report(files, difference)


def compare(
    model: ForeignModel, other: ForeignModel, dtype: FloatType, progress: Progress = lambda *_: None
) -> float:
    """Sees that two models compute the same, both in float32.

    Args:
      model: the one that was written.
      other: what was read back.
      dtype: that float weights were written in.
      progress: is told of it.

    Returns:
      The largest difference of a logit, as a share of the largest: what sums in another order and
      a rounded scale make, and activations that they take over the border to another code.

    Raises:
      DataError: they differ: in a ternary code, or in the logits by more than 5 %.
    """
    progress("compare", 0, 1)
    config = dataclasses.replace(model.config, compute_dtype="float32")
    own, others = (export_tensors.weights(m.params) for m in (model, other))
    for path, leaf in own.items():
        if not parameters.is_ternary(config, path):
            own[path] = export_tensors.rounded(path, leaf, dtype)
            continue
        codes, read = (export_tensors.ternary(w)[0] for w in (leaf, others[path]))
        if not np.array_equal(codes, read):
            raise _not_the_same(f"{np.sum(codes != read):,} weights of {path} have other codes")
    length = min(_COMPARED_TOKENS, model.context or _COMPARED_TOKENS)
    most = min(config.vocab_size, model.tokenizer.vocab_size)
    token_T = np.random.default_rng(0).integers(0, most, length, np.int32)
    before, after = (_logits(config, dense.nested(tree), token_T) for tree in (own, others))
    difference = float(np.abs(before - after).max() / max(np.abs(before).max(), 1e-30))
    progress("compare", 1, 1)
    if not difference <= _MOST_DIFFERENCE:
        raise _not_the_same(f"its logits differ by {difference:.1%} of the largest")
    return difference


def _not_the_same(why: str) -> DataError:
    return DataError(
        "the model that was written isn't the same", why, "reporting this, with its config.json"
    )


def _logits(config: ModelConfig, params: Any, token_T: np.ndarray) -> np.ndarray:
    def read(params: Any) -> jax.Array:
        hidden = transformer.read(config, params, jnp.asarray(token_T[None]))
        return transformer.logits(config, params, hidden)[0]

    return np.asarray(jax.jit(read)(params))


def _llama_tensors(
    config: ModelConfig, params: Any, packing: Packing, dtype: FloatType
) -> Iterator[_Tensor]:
    embedding = params["embed"]["embedding"]
    yield _Tensor(EMBEDDING, lambda: export_tensors.dense_table(embedding, dtype))
    for index in range(config.num_layers):
        group, place = divmod(index, len(config.mixers))
        block, prefix = params[parameters.group_name(group)][f"block_{place}"], names.layer(index)
        for ours, theirs in names.NORMS.items():
            yield _vector(f"{prefix}{theirs}.weight", block[ours]["scale"])
        for part, projections in names.PROJECTIONS.items():
            is_ternary = config.ternary.mixer if part == "mixer" else config.ternary.mlp
            for ours, theirs in projections.items():
                how: Packing = packing if is_ternary else "none"
                yield from _projection(prefix + theirs, block[part][ours], how, dtype)
            if "sub_norm" in block[part]:
                name = f"{prefix}{names.SUB_NORMS[part]}.weight"
                yield _vector(name, block[part]["sub_norm"]["scale"])
    yield _vector(names.FINAL_NORM, params["final_norm"]["scale"])
    if not config.tie_embeddings:
        head = params["head"]["kernel"]
        yield _Tensor(HEAD, lambda: export_tensors.dense_rows(head, dtype))


def _projection(name: str, params: Any, packing: Packing, dtype: FloatType) -> Iterator[_Tensor]:
    kernel = params["kernel"]
    if packing == "none":
        yield _Tensor(f"{name}.weight", lambda: export_tensors.dense_rows(kernel, dtype))
    elif packing == "online":
        yield _Tensor(f"{name}.weight", lambda: export_tensors.masters(kernel, dtype))
    else:
        yield _Tensor(f"{name}.weight", lambda: export_tensors.packed_rows(kernel))
        scale = export_tensors.scale_of(kernel)
        written = np.array([scale if packing == "multiply" else 1 / scale], np.float32)
        yield _Tensor(f"{name}.weight_scale", lambda: written)
    if "bias" in params:
        yield _vector(f"{name}.bias", params["bias"])
    if "norm" in params:
        yield _vector(f"{name}.{names.INNER_NORM}.weight", params["norm"]["scale"])


def _own_tensors(config: ModelConfig, params: Any, dtype: FloatType) -> Iterator[_Tensor]:
    for path, leaf in export_tensors.weights(params).items():
        make = functools.partial(_own_values, config, path, leaf, dtype)
        yield _Tensor(dense.tensor_name(path), make)


def _own_values(config: ModelConfig, path: str, leaf: Any, dtype: FloatType) -> np.ndarray:
    if parameters.is_ternary(config, path):
        return export_tensors.masters(leaf, dtype).T
    return np.asarray(export_tensors.rounded(path, leaf, dtype))


def _vector(name: str, values: jax.Array) -> _Tensor:
    return _Tensor(name, lambda: np.asarray(values, np.float32))


def _write_weights(
    folder: Path, tensors: list[_Tensor], shard_bytes: int, progress: Progress
) -> None:
    """One file, or several with an index; a file's tensors are in memory at once."""
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}

    def flush() -> None:
        shards.append(list(pending))
        safetensors.write(folder / f"{len(shards)}.part", pending, {"format": "pt"})
        pending.clear()

    for done, tensor in enumerate(tensors):
        progress("write", done, len(tensors))
        values = np.ascontiguousarray(tensor.make())
        if pending and sum(t.nbytes for t in pending.values()) + values.nbytes > shard_bytes:
            flush()
        pending[tensor.name] = values
        sizes[tensor.name] = values.nbytes
    flush()
    progress("write", len(tensors), len(tensors))
    if len(shards) == 1:
        (folder / "1.part").rename(folder / SINGLE_FILE)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
    _write_json(folder / INDEX_FILE, index)


def _write_text_files(folder: Path, model: ForeignModel) -> None:
    tokenizer: Tokenizer = model.tokenizer
    tokenizer.save(folder / "tokenizer.json")
    special = {
        f"{name}_token": tokenizer.token(id_)
        for name, id_ in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))
    }
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if model.context:
        described["model_max_length"] = model.context
    if model.chat_template:
        described["chat_template"] = model.chat_template
    _write_json(folder / "tokenizer_config.json", described)
    ends = sorted({tokenizer.eos_id, *tokenizer.stop_ids})
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends}
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(name: str, model: ForeignModel, described: dict[str, Any], more: str) -> str:
    config = model.config
    parts = [part for part in ("mixer", "mlp") if getattr(config.ternary, part)]
    loads = "bitttt_jax only: no other program computes these mixers"
    if not config.uses_ttt:
        loads = f"transformers ({described['architectures'][0]}) and bitttt_jax"
    return (
        f"""---
library_name: {"bitttt_jax" if config.uses_ttt else "transformers"}
pipeline_tag: text-generation
---

# {name}

| | |
|---|---|
| mixers | {", ".join(config.mixers)} |
| blocks, width, heads | {config.num_layers}, {config.dim}, {config.num_heads} |
| vocabulary | {config.vocab_size:,} |
| ternary weights | {" and ".join(parts) or "none"} |
| context | {model.context or "not bounded"} |
| made from | {model.description} |
| loaded by | {loads} |

    bitttt generate --model={name} --prompt="..."

{more}""".rstrip()
        + "\n"
    )

"""`bitttt bench`: how fast a packed model reads and writes here."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro

from bitttt_jax import __version__
from bitttt_jax.commands.model_flags import ModelFlags, load_model
from bitttt_jax.errors import ConfigError, DataError, run_main


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(ModelFlags):
    """Measure how fast a model reads a prompt and writes, and what the memory allows.

    bitttt bench --config=bitnet_2b4t --threads=2

    bitttt bench --model=quickstart-packed --batch=1,4 --json=bench.json
    """

    model: str = ""
    """Run directory, packed model, Hugging Face folder, or GGUF file; or --config."""
    config: str = ""
    """Shape: a preset or a configuration; its weights are random."""
    table: Literal["exact", "int8", "int4", "int4x2"] = "int8"
    """With --config: how the embedding and the output head are stored."""
    threads: int = 0
    """CPU threads; 0 for all."""
    prefill: int = 512
    """Tokens of the prompt."""
    decode: int = 64
    """Steps to time."""
    batch: str = "1"
    """Numbers of sequences at once, separated by commas."""
    context: str = ""
    """More context lengths after which a step is timed, separated by commas."""
    kernels: bool = False
    """Measure products with the model's packed weights too, one after the other: with one row of
    activations, which is limited by memory, and with as many as the prompt has tokens."""
    vocab_size: int = 0
    """With --config: size of the vocabulary, where the configuration leaves it to a tokenizer."""
    json: str = ""
    """File for the numbers."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt bench", use_underscores=True)
    batches, contexts = _numbers("batch", flags.batch), _numbers("context", flags.context)
    if flags.vocab_size < 0 or (flags.vocab_size and flags.model):
        raise ConfigError("--vocab_size must be positive, and goes with --config")
    for name in ("prefill", "decode"):
        if getattr(flags, name) < 2:
            raise ConfigError(f"--{name} must be at least 2, got {getattr(flags, name)}")
    if bool(flags.config) == bool(flags.model):
        raise ConfigError("one of --config and --model is needed, not both")
    _use_threads(flags.threads)
    from bitttt_jax.inference import speed

    config, params, load = _model(flags)
    print("measuring, compilation first", file=sys.stderr)
    bandwidth = speed.memory_bandwidth()
    result = _header(flags) | {
        "load": load,
        "memory_gb_per_s": bandwidth and bandwidth / 1e9,
        "runs": [],
    }
    if bandwidth:
        print(f"memory      {bandwidth / 1e9:8.1f} GB/s can be read")
    for batch in batches:
        prefill = speed.prefill_seconds(config, params, flags.prefill, batch)
        result["runs"].append(
            {"what": "prefill", "tokens": flags.prefill, "batch": batch}
            | dataclasses.asdict(prefill)
        )
        _print("prefill", flags.prefill, batch, flags.prefill * batch, prefill)
        for context in (flags.prefill, *contexts) if batch == batches[0] else (flags.prefill,):
            step = speed.decode_seconds(config, params, context, batch, flags.decode)
            read = speed.bytes_per_step(config, params, context, batch)
            share = read / step.median / bandwidth if bandwidth else None
            result["runs"].append(
                {"what": "decode", "context": context, "batch": batch, "bytes": read}
                | dataclasses.asdict(step)
                | {"share_of_bandwidth": share}
                | {"state_bytes": speed.state_bytes(config, params, context, batch)}
            )
            _print("decode", context, batch, batch, step)
            print(f"            {read / 1e6:8.1f} MB a step{_of_memory(share)}")
    if flags.kernels:
        result["kernels"] = [
            _kernel(shape, weights, flags.prefill, bandwidth)
            for shape, weights in speed.packed_weights(params).items()
        ]
    result |= _memory()
    if flags.json:
        _write(Path(flags.json), result)


def _memory() -> dict[str, Any]:
    """Of this process, and of the machine that it shares."""
    from bitttt_jax.runs.memory_use import host_memory, process_memory
    from bitttt_jax.training.hardware import host_peak_bytes

    resident, host = process_memory(), host_memory()
    peak = max(host_peak_bytes(), resident)
    print(f"resident    {_mib(resident)}, {_mib(peak)} at most; host memory {host}")
    return {
        "resident_bytes": resident,
        "peak_resident_bytes": peak,
        "host_memory": {"used": host.used, "total": host.total, "pressure": host.level},
    }


def _header(flags: Flags) -> dict[str, Any]:
    from bitttt_jax import native

    return {
        "model": flags.model or flags.config,
        "table": "" if flags.model else flags.table,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"bitttt_jax": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in ("jax", "jaxlib")},
        "kernels_for": native.instruction_set(),
        "threads": flags.threads or len(_cpus()),
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    from bitttt_jax.runs.files import write_atomically

    try:
        write_atomically(path, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise DataError(f"--json={path} can't be written", str(error)) from error


def _kernel(
    shape: tuple[int, int], weights: list[Any], rows: int, bandwidth: float | None
) -> dict[str, Any]:
    from bitttt_jax.inference import speed

    one, many = (speed.product_seconds(weights, count) for count in (1, rows))
    rate = weights[0].codes.nbytes / one.median
    operations = 2 * rows * shape[0] * shape[1] / many.median
    share = _of_memory(rate / bandwidth if bandwidth else None)
    print(
        f"product     {shape[0]:,} x {shape[1]:,}: {rate / 1e9:.1f} GB/s with 1 row{share}; "
        f"{operations / 1e9:,.0f} GOP/s with {rows:,}"
    )
    return {
        "inputs": shape[0],
        "outputs": shape[1],
        "weights": len(weights),
        "gb_per_s": rate / 1e9,
        "rows": rows,
        "gop_per_s": operations / 1e9,
        "one_row_s": dataclasses.asdict(one),
        "many_rows_s": dataclasses.asdict(many),
    }


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers) or (name == "batch" and not numbers):
        raise ConfigError(f"--{name} must be positive numbers separated by commas, got {text!r}")
    return numbers


def _of_memory(share: float | None) -> str:
    return "" if share is None else f", {share:.0%} of the memory's rate"


def _cpus() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _use_threads(count: int) -> None:
    """Restricts this process to some CPUs, by which XLA sizes its pools when it starts."""
    if not 0 <= count <= len(_cpus()):
        raise ConfigError(f"--threads={count}, and this process has {len(_cpus())} CPUs")
    if count:
        if not hasattr(os, "sched_setaffinity"):
            raise ConfigError("--threads works on Linux only")
        os.sched_setaffinity(0, _cpus()[:count])


def _model(flags: Flags) -> tuple[Any, Any, dict[str, Any] | None]:
    """Configuration and parameters, and what loading a trained model took."""
    from bitttt_jax.config_loading import load_config
    from bitttt_jax.inference import speed

    if flags.model:
        return _load(flags)
    from bitttt_jax.distributed.devices import use_device
    from bitttt_jax.distributed.processes import use_compile_cache

    use_device(flags.device)
    use_compile_cache()
    config = load_config(flags.config).model
    if flags.vocab_size:
        config = dataclasses.replace(config, vocab_size=flags.vocab_size)
    if not config.vocab_size:
        raise ConfigError(
            f"--config={flags.config} has no vocabulary size: its tokenizer is trained",
            fix="--vocab_size=32000, or --model with a trained model",
        )
    return config, speed.random_params(config, flags.table), None


def _load(flags: Flags) -> tuple[Any, Any, dict[str, Any]]:
    """Loads a model, and says how long that took and by how much the process grew."""
    import jax

    from bitttt_jax.distributed.devices import use_device
    from bitttt_jax.runs.memory_use import process_memory
    from bitttt_jax.training.hardware import host_peak_bytes

    use_device(flags.device)
    jax.devices()  # the backend's own memory isn't the model's
    before, started = process_memory(), time.perf_counter()
    model = load_model(flags)
    jax.block_until_ready(model.params)
    seconds, after = time.perf_counter() - started, process_memory()
    figures: dict[str, Any] = {
        "seconds": seconds,
        "resident_bytes": after - before,
        # The system's own count of the peak lags a little behind.
        "peak_resident_bytes": max(host_peak_bytes(), after) - before,
    }
    text = f"{figures['seconds']:8.1f} s, {_mib(figures['resident_bytes'])} of memory"
    text += f", {_mib(figures['peak_resident_bytes'])} at most"
    if size := _file_bytes(Path(flags.model)):
        figures["file_bytes"] = size
        text += f", for a file of {_mib(figures['file_bytes'])}"
    print(f"load        {text}")
    return model.config, model.params, figures


def _file_bytes(path: Path) -> int:
    """Of the weights, where they are a file or several of them; 0 elsewhere."""
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _print(what: str, tokens: int, batch: int, per_call: int, seconds: Any) -> None:
    rate = per_call / seconds.median
    spread = f"{per_call / seconds.upper:,.1f} to {per_call / seconds.lower:,.1f}"
    print(
        f"{what:8}{tokens:6,} x{batch:2}{rate:9,.1f} tokens/s ({spread}), "
        f"{1e3 * seconds.median:,.1f} ms"
    )

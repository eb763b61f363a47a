"""The README's sentences and tables about speed, each made from a record."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from benchmarks.train_cases import MIXERS
from benchmarks.turns import DISTURBED

MACHINE = "intel-xeon-2-cores"
_NAMES = {"attention": "attention", "ttt_linear": "TTT-Linear", "ttt_mlp": "TTT-MLP"}
_WEIGHTS = {"int8": "ternary_int8", "float": "float"}
_DTYPES = ("bfloat16", "float32")
_SMOLLM2 = {
    "bfloat16": "ours, bfloat16",
    "int8": "ours, int8",
    "transformers_bfloat16": "transformers, bfloat16",
    "transformers_float32": "transformers, float32",
    "llama_cpp_q8_0": "llama.cpp, Q8_0",
    "llama_cpp_as_is": "llama.cpp, Q4_1",
}
_WIDTH = 120

Record = dict[str, Any]


def record_path(title: str, suffix: str = ".json") -> str:
    """A record or figure, from the repository's root."""
    return f"benchmarks/results/{title}-{MACHINE}{suffix}"


def train_step(record: Record) -> list[str]:
    """Introduction, table and figure of the training benchmark."""
    size = record["sizes"]
    kinds = [(weights, dtype) for dtype in _DTYPES for weights in _WEIGHTS]
    cells = lambda mixer: [_rate(record, _case(record, mixer, *kind)) for kind in kinds]
    rows = [[_NAMES[mixer], *cells(mixer)] for mixer in MIXERS]
    torch = [_case(record, "attention", "torch", dtype) for dtype in _DTYPES]
    notes = []
    if all(name in record["cases"] for name in torch):
        bfloat16, float32 = (_rate(record, name) for name in torch)
        rows.append(["attention in PyTorch", "", bfloat16, "", float32])
        version = record["cases"][torch[0]]["runs"][0]["versions"]["torch"]
        notes.append(
            f"PyTorch {version}, eager, reads one document a row and needs no mask of them."
        )
    if any("\\*" in cell for row in rows for cell in row):
        notes.append(f"\\* The machine had less than {DISTURBED:.0%} of its usual speed at times.")
    rounds = len(record["cases"][_case(record, "attention", "int8", "bfloat16")]["runs"])
    intro = (
        "**The train step**, [benchmarks/](benchmarks/README.md): tokens a second of the real step "
        f"(forward, backward, AdamW, packed documents) at width {size['dim']}, "
        f"{size['num_layers']} layers, {size['num_heads']} heads, vocabulary "
        f"{size['vocab_size']:,}, rows of {size['seq_lens'][0]}, {size['batch']} a step; "
        f"{_software(record)}; medians of {rounds} rounds in turns, "
        f"[record]({record_path('train_step')}) with the spread."
    )
    names = {"int8": "ternary", "float": "float"}
    head = ["", *(f"{names[weights]}, {dtype}" for weights, dtype in kinds)]
    figure = record_path("train_step", "-growth.png")
    return [
        _fill(intro),
        _table(head, rows),
        *([_fill(" ".join(notes))] if notes else []),
        f"![Tokens a second with longer rows and with more rows]({figure})",
    ]


def train_step_remarks(record: Record) -> list[str]:
    """What the same record says besides its table."""
    size = record["sizes"]
    usual = _case(record, "ttt_linear", "int8", "bfloat16")
    primal, xla = (usual.replace("linear-", f"linear-{how}-") for how in ("primal", "xla"))
    speedup = _median(record, usual) / _median(record, primal)
    tokens = max(size["seq_lens"])
    ends = [(T, tokens // T) for T in (min(size["seq_lens"]), tokens)]
    grown = {
        mixer: [_case(record, mixer, "int8", "bfloat16", *end) for end in ends]
        for mixer in ("ttt_linear", "attention")
    }
    rates = {m: [_rate(record, name) for name in names] for m, names in grown.items()}
    memory = [
        record["cases"][name]["summary"]["peak_rss_mib"] / 1024 for name in grown["ttt_linear"]
    ]
    share = lambda mixer, dtype: (
        _median(record, _case(record, mixer, "int8", dtype))
        / _median(record, _case(record, mixer, "float", dtype))
    )
    shares = {
        dtype: _listed([f"{share(mixer, dtype):.2f}" for mixer in MIXERS]) for dtype in _DTYPES
    }
    return [
        f"TTT-Linear without the native kernels: {_rate(record, xla)}. Its closed form against "
        f"`jax.grad` for every token: {speedup:.0f} times as fast.",
        f"With {tokens:,} tokens in a step, in rows of {ends[0][0]} to {ends[1][0]:,}: TTT-Linear "
        f"goes from {rates['ttt_linear'][0]} to {rates['ttt_linear'][1]} tokens a second, in "
        f"{_range(memory, 1)} GiB of memory, and attention from {rates['attention'][0]} to "
        f"{rates['attention'][1]}.",
        f"With ternary weights {_listed([_NAMES[mixer] for mixer in MIXERS])} have "
        f"{shares['bfloat16']} times the float step's speed in bfloat16, {shares['float32']} in "
        "float32: this CPU multiplies bfloat16 in matrix registers, and quantising costs more than "
        "the integer product saves.",
    ]


def start_and_overhead(startup: Record, overhead: Record) -> str:
    """Time to the first step, and what the loop adds to each."""
    cold, warm = (startup[kind]["total_s"]["median"] for kind in ("cold", "warm"))
    added = overhead["overhead_percent"]["full"]
    return (
        f"From the command to the first step of the quickstart: {cold:.1f} s with an empty compile "
        f"cache, {warm:.1f} s with a filled one ([record]({record_path('startup')})). Reading, "
        f"logging and monitoring add {added['median']:.1f} % to the step, {added['min']:.1f} to "
        f"{added['max']:.1f} % in single rounds ([record]({record_path('overhead')}))."
    )


def packed(record: Record) -> list[str]:
    """Packed models: prompts, steps, loading, and llama.cpp where it was measured."""
    cases = {name: case for name, case in record["cases"].items() if "summary" in case}
    ours, peer = cases["attention"], cases.get("llama_cpp")
    named = {"int8 table": ours, "int4 table": cases["attention_int4"]}
    named |= {"int4x2 table": cases.get("attention_int4x2"), "llama.cpp": peer}
    columns = [case["summary"] for case in named.values() if case]
    rate = lambda tokens, spread: f"{tokens / spread['median']:,.{0 if tokens > 1 else 1}f}"
    rows = [
        [f"prompt of {int(n):,} tokens", *(rate(int(n), c["prefill_s"][n]) for c in columns)]
        for n in columns[0]["prefill_s"]
    ] + [
        [f"steps after {int(n):,} tokens", *(rate(1, c["step_s"][n]) for c in columns)]
        for n in columns[0]["step_s"]
    ]
    rounds = [len(case["runs"]) for case in cases.values()]
    intro = (
        "**Packed weights**, `python -m benchmarks.packed`: random weights in the shape of BitNet "
        "b1.58 2B4T, 2.4 B parameters, the table that is embedding and head in int8 or in int4; "
        "tokens a second of one sequence "
        f"with {record['threads']} threads; {_software(record)}; medians of "
        f"{_range(rounds, 0)} rounds in turns, [record]({record_path('packed')})."
    )
    figure = record_path("packed", "-latency.png")
    return [
        _fill(intro),
        _table(["", *(name for name, case in named.items() if case)], rows),
        *([_fill(_peer(peer))] if peer else []),
        f"![Time of a step after longer and longer contexts]({figure})",
        bullets(
            [
                _memory(ours),
                *([_batch(ours, cases["batch"])] if "batch" in cases else []),
                _kernels(ours),
                _constant(cases["ttt_linear"]),
                _load(cases["load"]),
            ]
        ),
    ]


def _peer(case: Record) -> str:
    run = case["runs"][-1]
    return (
        f"llama.cpp is that of llama-cpp-python {run['versions']['llama-cpp-python']}, built for "
        f"this CPU, at its defaults, with TQ2_0 weights. What differs: {case['differences']}."
    )


def _memory(case: Record) -> str:
    step = next(line for line in case["runs"][-1]["runs"] if line["what"] == "decode")
    shares = [
        next(line for line in run["runs"] if line["what"] == "decode")["share_of_bandwidth"]
        for run in case["runs"]
    ]
    memory = case["summary"]["memory_gb_per_s"]["median"]
    return (
        f"A step after {step['context']} tokens reads {step['bytes'] / 1e6:,.0f} MB at "
        f"{_range([100 * share for share in shares], 0)} % of the rate at which memory could be "
        f"read ({memory:.1f} GB/s)."
    )


def _batch(one: Record, several: Record) -> str:
    (context, step), *_ = several["summary"]["step_s"].items()
    rows = several["runs"][-1]["runs"][-1]["batch"]
    rate = rows / step["median"]
    return (
        f"{rows} sequences at once, after {context} tokens each: {rate:,.0f} tokens a second in "
        f"all, {rate * one['summary']['step_s'][context]['median']:.1f} times those of one."
    )


def _kernels(case: Record) -> str:
    kernels = case["summary"]["kernels"].values()
    rows = case["runs"][-1]["kernels"][0]["rows"]
    over = lambda unit, scale: [kernel[unit]["median"] * scale for kernel in kernels]
    return (
        f"Products with {rows} rows: {_range(over('gop_per_s', 1e-3), 1)} TOP/s; with one row: "
        f"{_range(over('gb_per_s', 1), 0)} GB/s of packed weights."
    )


def _constant(case: Record) -> str:
    steps = {int(context): spread for context, spread in case["summary"]["step_s"].items()}
    state = {line.get("state_bytes", 0) for run in case["runs"] for line in run["runs"]} - {0}
    last = max(steps)
    first = 1024 if 1024 in steps else min(steps)
    ms = lambda context: f"{1e3 * steps[context]['median']:.1f} ms"
    return (
        f"A step of TTT-Linear at the 125M shape takes {ms(first)} after {first:,} tokens and "
        f"{ms(last)} after {last:,}, with a state of {_range([x / 1e6 for x in state], 1)} MB."
    )


def _load(case: Record) -> str:
    load = case["summary"]["load"]
    times = lambda key: f"{load[key]['median'] / load['file_bytes']:.2f}"
    return (
        f"Loading the large shape from a file of {load['file_bytes'] / 1e6:,.0f} MB in the "
        f"system's cache, its hash checked: {load['seconds']['median']:.1f} s. The process grows "
        f"by {times('resident_bytes')} times the file, {times('peak_resident_bytes')} at its peak."
    )


def smollm2(record: Record) -> list[str]:
    """A real model beside the peers with which it was measured."""
    cases = {name: case for name, case in record["cases"].items() if "summary" in case}
    runs = {name: case["runs"][-1] for name, case in cases.items()}
    intro = (
        "**A real model**, `python -m benchmarks.smollm2`: SmolLM2-135M-Instruct from its Q4_1 "
        f"file with {record['threads']} threads; tokens a second of a prompt of "
        f"{record['prefill']} tokens, and of the steps after it; {_software(record)}; "
        f"{_rounds(cases)}, [record]({record_path('smollm2')})."
    )
    rows = []
    for name in (name for name in _SMOLLM2 if name in cases):
        summary = cases[name]["summary"]
        prompt = record["prefill"] / summary["prefill_s"]["median"]
        busy = "\\*" if summary["lowest_calibration"] < DISTURBED else ""
        step = 1 / summary["step_s"]["median"]
        rows.append([_SMOLLM2[name], f"{prompt:,.0f}{busy}", f"{step:,.1f}{busy}"])
    versions = {k: v for run in runs.values() for k, v in run["versions"].items()}
    notes = [
        f"{text} {versions[package]} {how}."
        for package, text, how in (
            ("torch", "transformers runs on PyTorch", "and multiplies dense weights"),
            ("llama-cpp-python", "llama.cpp is that of llama-cpp-python", _settings(runs)),
        )
        if package in versions
    ]
    if any("\\*" in cell for row in rows for cell in row):
        notes.append(f"\\* The machine had less than {DISTURBED:.0%} of its usual speed at times.")
    table = _table(["", "prompt", "steps"], rows)
    return [_fill(intro), table, *([_fill(" ".join(notes))] if notes else [])]


def serve(record: Record) -> str:
    """What the server adds, and what many requests of all kinds leave behind."""

    def of(model: str) -> str:
        found, cases = record["compared"][model], record["cases"]
        rate = lambda kind, count: cases[f"{model}-{kind}-{count}"]["summary"]["tokens_per_s"]
        preset, mixer = model.split("-")
        added = round(found["added_token_ms"], 2) + 0.0  # not -0.00
        one, many, alone = (
            f"{rate(*which)['median']:,.0f}"
            for which in (("clients", 1), ("clients", 16), ("engine", 16))
        )
        first = found["added_first_ms"]
        later = f"{first:.1f} ms until the first" if first > 0 else "no later for the first"
        return (
            f"{_NAMES[mixer]} at the shape `{preset}`: {added:.2f} ms a token "
            f"more than the engine alone and {later}; "
            f"{one} tokens a second to one client, {many} to 16 "
            f"({found['clients_16_over_1']:.1f} times), of the engine's {alone} without a server."
        )

    soak = record["soak"]
    asked, answered = (sum(soak[name].values()) for name in ("asked", "answered"))
    intro = (
        "**The server**, `python -m benchmarks.serve`: random weights, replies of 128 tokens; "
        f"{_software(record)}, [record]({record_path('serve')}). The clients' process shares the "
        "two cores."
    )
    lasting = (
        f"{asked:,} requests, among them clients that go, don't read, or send what is malformed: "
        f"{answered:,} were answered as they should be, {soak['jobs_left']} places stayed taken, "
        f"and memory went from {soak['rss_mib_after_a_quarter']:,.0f} to "
        f"{soak['rss_mib_at_the_end']:,.0f} MiB."
    )
    return f"{_fill(intro)}\n\n{bullets([*map(of, record['compared']), lasting])}"


def _rounds(cases: Record) -> str:
    counts = [len(case["runs"]) for case in cases.values()]
    if max(counts) == 1:
        return "one round in turns"
    return f"medians of {_range(counts, 0)} rounds in turns"


def _settings(runs: Record) -> str:
    found = {run["settings"] for run in runs.values() if "settings" in run}
    return "; ".join(f"at its {how}" if how == "defaults" else how for how in sorted(found))


def bullets(texts: Sequence[str]) -> str:
    """A list, wrapped."""
    return "\n".join(_fill(text, "- ", "  ") for text in texts)


def _case(record: Record, mixer: str, weights: str, dtype: str, T: int = 0, batch: int = 0) -> str:
    size = record["sizes"]
    kind = _WEIGHTS.get(weights, weights)
    return f"{mixer}-{kind}-{dtype}-T{T or size['seq_lens'][0]}-b{batch or size['batch']}"


def _median(record: Record, name: str) -> float:
    return float(record["cases"][name]["summary"]["tokens_per_s"]["median"])


def _rate(record: Record, name: str) -> str:
    busy = record["cases"][name]["summary"]["lowest_calibration"] < DISTURBED
    return f"{_median(record, name):,.0f}" + ("\\*" if busy else "")


def _software(record: Record) -> str:
    python = ".".join(record["versions"]["python"].split(".")[:2])
    return f"Python {python}, jax {'.'.join(record['versions']['jax'].split('.')[:2])}"


def _listed(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def _range(values: Sequence[float], digits: int) -> str:
    low, high = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = lambda cells: "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])


def _fill(text: str, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )

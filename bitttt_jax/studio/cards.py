"""Failures as cards: what happened in words, why, and buttons that change the right field."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.observe import Observation, explain
from bitttt_jax.studio.logs import clean, tail_lines
from bitttt_jax.studio.processes import Job, JobState
from bitttt_jax.studio.run_files import read_json
from bitttt_jax.studio.run_store import RunFacts

_TAIL_LINES = 50
_DIAGNOSTIC_LINES = 100
_HINT_SEPARATOR = "; "

Card = dict[str, Any]


def run_card(facts: RunFacts, config: Mapping[str, Any]) -> Card | None:
    """What went wrong with a run.

    Args:
      facts: what is known of it.
      config: its configuration as nested JSON values.

    Returns:
      The card; None if nothing did.
    """
    folder = facts.folder
    error = read_json(folder / "error.json")
    if facts.state == "failed" and isinstance(error, dict) and error.get("title"):
        card = _from_error(error)
    elif facts.not_responding:
        card = _not_responding(facts)
    elif facts.state == "lost":
        card = _lost(facts)
    elif facts.state == "failed":
        card = _ended_badly(facts.exit_code, facts.job_state, folder / "train.log")
    else:
        return None
    card["exit_code"] = facts.exit_code
    card["actions"] = [*fixes(card["kind"], config), *_follow_ups(card["kind"], folder)]
    card["tail"] = card["tail"] or tail_lines(folder / "train.log", _TAIL_LINES)[0]
    argv = facts.job.argv if facts.job else None
    card["diagnostics"] = diagnostics(card, folder / "command.txt", folder / "train.log", argv)
    return card


def job_card(job: Job, state: JobState) -> Card | None:
    """What went wrong with a job; None if nothing did."""
    if state.state not in ("failed", "lost"):
        return None
    if state.state == "lost":
        card = _card("lost", "The process is gone", _LOST)
    else:
        card = _ended_badly(state.exit_code, state, job.log)
    card["exit_code"] = state.exit_code
    card["tail"] = tail_lines(job.log, _TAIL_LINES)[0]
    card["diagnostics"] = diagnostics(card, None, job.log, job.argv)
    return card


def failure_card(failure: Mapping[str, Any], config: Mapping[str, Any]) -> Card:
    """A card from the fields of an error.json, for a configuration that hasn't been started."""
    card = _from_error(failure)
    card["actions"] = fixes(card["kind"], config)
    card["diagnostics"] = diagnostics(card, None, None, None)
    return card


_LOST = (
    "It ended without saying why: its computer may have been restarted, or something else on it "
    "has ended the process."
)
_KERNEL = (
    "The kernel ended it because memory ran out: {count} since it was started. The host's memory "
    "was full, not the device's."
)


def _card(kind: str, title: str, why: str = "", **fields: Any) -> Card:
    return {
        "kind": kind,
        "title": title,
        "why": why,
        "detail": "",
        "hints": [],
        "actions": [],
        "tail": [],
        "traceback": None,
        "exit_code": None,
        "diagnostics": "",
        **fields,
    }


def _from_error(error: Mapping[str, Any]) -> Card:
    hints, tail = error.get("hints"), error.get("tail")
    trace = error.get("traceback")
    return _card(
        str(error.get("kind") or "unexpected"),
        str(error.get("title")),
        str(error.get("detail") or ""),
        hints=[str(hint) for hint in hints] if isinstance(hints, list) else [],
        tail=[clean(str(line)) for line in tail] if isinstance(tail, list) else [],
        traceback=str(trace) if trace else None,
    )


def _lost(facts: RunFacts) -> Card:
    if facts.status is None:
        return _card("lost", "The process is gone", _LOST)
    seen = Observation("lost", facts.alive, False, facts.status)
    told = explain(RunDirectory(facts.folder), seen)
    assert told is not None
    title = told.title[0].upper() + told.title[1:]
    return _card("lost", title, told.why, hints=list(told.hints))


def _not_responding(facts: RunFacts) -> Card:
    step = facts.status.step if facts.status else 0
    return _card(
        "not_responding",
        f"No sign of life since step {step}",
        "The process is there, but a step takes far longer than those before it: it waits for "
        "a device, a disk or another host, or has been suspended.",
        hints=["wait, if the device is busy with something else", "force stop, then resume"],
    )


def _ended_badly(code: int | None, state: JobState | None, log: Path) -> Card:
    lines = [line for line in tail_lines(log, _TAIL_LINES)[0] if line.strip()]
    if code is not None and code < 0:
        return _killed(-code, state.oom_kills if state else 0)
    kind = {2: "config", 3: "out_of_memory", 4: "diverged", 5: "data"}.get(code or 0, "unexpected")
    told = [index for index, line in enumerate(lines) if line.startswith("error")]
    if not told:
        return _card(kind, lines[-1] if lines else f"It ended with exit code {code}")
    # As printed by `BittttError`: what, then why, then what to try, indented.
    what, *rest = [line.strip() for line in lines[told[-1] :]]
    what = what.removeprefix("error").lstrip(": ")
    hints = [line.removeprefix("Try: ") for line in rest if line.startswith("Try: ")]
    why = "\n".join(line for line in rest if not line.startswith("Try: "))
    if "pip install" in "".join(hints) and "bitttt-jax[" in "".join(hints):
        kind = "missing_extra"
    return _card(kind, what, why, hints=[h for hint in hints for h in hint.split(_HINT_SEPARATOR)])


def _killed(number: int, oom_kills: int) -> Card:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if oom_kills:
        return _card(
            "killed",
            f"Killed by {name}: the host ran out of memory",
            _KERNEL.format(count=f"{oom_kills} process{'es' * (oom_kills > 1)}"),
            hints=["a smaller data.batch_size", "fewer other programs at the same time"],
        )
    why = {
        "SIGKILL": "Somebody, a time limit or the system ended it without a warning.",
        "SIGSEGV": "It touched memory that isn't its own: a fault of native code.",
        "SIGABRT": "Native code gave up; the log's last lines say why.",
    }.get(name, "")
    return _card("killed", f"Ended by {name}", why)


# --- actions ------------------------------------------------------------------------------------


def fixes(kind: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Buttons that change fields of a configuration against a kind of failure.

    Args:
      kind: of the failure.
      config: nested JSON values.
    """
    value = lambda key, default: _value(config, key, default)
    actions = []

    def change(label_key: str, label: str, **changes: Any) -> None:
        named = {key.replace("__", "."): change for key, change in changes.items()}
        actions.append({"label_key": label_key, "label": label, "changes": named})

    if kind in ("out_of_memory", "killed"):
        batch, parts = value("data.batch_size", 1), value("optim.accumulation", 1)
        half, now = batch // 2, batch / parts
        # The same number of parts if they come out even, else so many that each is smaller.
        sizes = [n for n in range(1, half + 1) if half % n == 0 and half / n < now]
        if sizes:
            shared = parts if parts in sizes else sizes[0]
            changes = {"data__batch_size": half}
            changes |= {"optim__accumulation": shared} if shared != parts else {}
            change("halve_batch", f"Halve the batch to {half} rows", **changes)
        more = next((n for n in range(2 * parts, batch + 1) if batch % n == 0), None)
        if more and kind == "out_of_memory":
            label = f"Run the batch in {more} parts"
            change("double_accumulation", label, optim__accumulation=more)
        if value("model.remat", "none") != "full" and kind == "out_of_memory":
            change("remat_full", "Recompute blocks in the backward pass", model__remat="full")
    elif kind == "diverged":
        rate, norm = value("optim.lr", 0.0), value("optim.clip_norm", 0.0)
        if rate:
            change("halve_lr", f"Halve the learning rate to {rate / 2:g}", optim__lr=rate / 2)
        lower = norm / 2 if norm else 1.0
        change("clip_norm", f"Clip gradients at {lower:g}", optim__clip_norm=lower)
    elif kind == "data" and value("data.on_error", "fail") == "fail":
        change("skip_bad", "Leave out documents that can't be read", data__on_error="skip")
    return actions


def _follow_ups(kind: str, folder: Path) -> list[dict[str, Any]]:
    def action(label_key: str, label: str, name: str) -> dict[str, Any]:
        return {"label_key": label_key, "label": label, "action": name}

    resume = action("resume", "Resume", "resume")
    clone = action("clone", "Change settings and start again", "clone")
    has_saved = bool(RunDirectory(folder).checkpoint_steps())
    if kind == "out_of_memory":
        return [action("estimate", "Estimate memory", "estimate"), clone]
    if kind == "data":
        return [action("open_data", "Look at the data", "open_data"), clone]
    if kind in ("killed", "lost", "unexpected", "checkpoint") and has_saved:
        return [resume, clone]
    return [] if kind in ("not_responding", "missing_extra") else [clone]


def _value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    fits = isinstance(node, type(default)) or (
        isinstance(default, float) and isinstance(node, int) and not isinstance(node, bool)
    )
    return node if fits else default


def diagnostics(
    card: Mapping[str, Any], command_file: Path | None, log: Path | None, argv: list[str] | None
) -> str:
    """Text to be copied into a report: command, versions, what happened, the log's end."""
    try:
        started = command_file.read_text(encoding="utf-8") if command_file else ""
    except OSError:
        started = ""
    # The newest start stands last; it names the command and versions.
    started = started.split("\n\n")[-1].strip() or (f"$ {' '.join(argv)}" if argv else "")
    lines = tail_lines(log, _DIAGNOSTIC_LINES)[0] if log else []
    parts = [
        started,
        f"{card['kind']} (exit code {card['exit_code']}): {card['title']}",
        card["why"],
        card["traceback"] or "",
        "\n".join(lines),
    ]
    return "\n\n".join(part for part in parts if part)

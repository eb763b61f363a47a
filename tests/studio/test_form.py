"""The form says the same as the command line, both ways, for every field of the schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from bitttt_jax.config import DataConfig, SourceConfig, TrainConfig
from bitttt_jax.config_loading import (
    apply_overrides,
    describe,
    flatten,
    from_json,
    load_config,
    preset_names,
    to_json,
)
from bitttt_jax.errors import ConfigError
from bitttt_jax.studio import form
from bitttt_jax.studio.schema import schema
from bitttt_jax.train_flags import parse_train_flags

PRESET = "quickstart"
# Values that a field can only have together with others.
NEEDED = {
    "data.tokenizer.path": {"data.tokenizer.kind": "file"},
    "data.tokenizer.kind=file": {"data.tokenizer.path": "a.json"},
    "model.ternary.activations": {"model.ternary.path": "fake_quant"},
    "model.ternary.warmup_steps": {"model.ternary.path": "fake_quant"},
    "model.ternary.outer_norm": {"model.ternary.inner_norm": True},
    "model.num_kv_heads": {"model.num_heads": 780, "model.head_dim": 4},
    "optim.accumulation": {"data.batch_size": 780},
    "model.mixers": {"model.num_layers": 8},
    "model.dim": {"model.head_dim": 4},
    "model.rope_scaling.high_freq_factor": {"model.rope_scaling.low_freq_factor": 1e-8},
    "steps": {"optim.warmup_steps": 0},
    "model.ttt.mini_batch": {"data.seq_len": 780},
    "data.seq_len": {"model.ttt.mini_batch": 1},
    "model.num_heads": {"model.head_dim": 4},
}


def other_values(field: dict[str, Any], now: Any) -> list[Any]:
    """Values of a field that differ from what it has now."""
    kind, choices = field["type"], field["choices"]
    if kind == "bool":
        return [not now]
    if kind == "choice":
        return [choice for choice in choices if choice != now]
    if kind == "list":
        return [[*choices, choices[0]]] if choices else [["x", "y"]]
    if kind == "str":
        return [
            "text with spaces, 'quotes', \"more\", $HOME, $(id), `id`, ; & 日本語 \\ -- --x=1",
            "",
        ]
    low = field["min"]
    if kind == "int":
        return [value for value in (6, 260) if value != now and (low is None or value >= low)]
    return [value for value in (0.3, 1e-7, 1.0) if value != now and value < (field["max"] or 2)]


def cases() -> list[tuple[str, Any]]:
    values = flatten(load_config(PRESET))
    fields = schema()["fields"]
    return [(f["key"], value) for f in fields for value in other_values(f, values[f["key"]])]


def ids(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 50 else str(value)[:20]


def test_every_key_has_a_field_and_a_case():
    keys = [key.name for key in describe(TrainConfig())]
    assert [field["key"] for field in schema()["fields"]] == keys
    assert {key for key, _ in cases()} == set(keys)
    assert all(field["help"] and field["title"] for field in schema()["fields"])
    basic = [field["key"] for field in schema()["fields"] if not field["advanced"]]
    assert 8 <= len(basic) <= 18


@pytest.mark.parametrize(("key", "value"), cases(), ids=ids)
def test_every_field_reaches_the_run(key: str, value: Any):
    """Form -> command -> parser -> config.json -> form."""
    needed = {} if value == "" else NEEDED.get(key, {}) | NEEDED.get(f"{key}={value}", {})
    values = {key: value, **needed}
    checked = form.check_values(PRESET, values, [])
    assert checked.problems == []
    assert form.plain(flatten(checked.config)[key]) == value
    answer = checked.as_json()
    parsed = parse_train_flags(answer["argv"][2:])
    written = to_json(parsed.config)
    assert json.loads(written) == answer["config"]
    assert checked.config == from_json(written)
    pasted = form.check_command(answer["command"], [])
    assert (pasted.preset, pasted.values) == (PRESET, checked.values)
    assert form.check_values(PRESET, pasted.values, []).config == checked.config


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("other", preset_names())
def test_any_configuration_can_be_said_with_any_preset(preset: str, other: str):
    config = load_config(other)
    values = form.values_between(load_config(preset), config)
    assert form.check_values(preset, values, []).config == config


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_sources_come_and_go(tmp_path: Path, count: int, before: int):
    sources = [
        SourceConfig(path=f"a, b{n}", kind="text" if n else "auto", weight=n + 1.0)
        for n in range(3)
    ]
    with_sources = lambda number: dataclasses.replace(
        TrainConfig(), data=DataConfig(sources=tuple(sources[3 - number :]))
    )
    file = tmp_path / "config.json"
    file.write_text(to_json(with_sources(before)))
    values = form.values_between(with_sources(before), with_sources(count))
    checked = form.check_values(str(file), values, [tmp_path])
    assert checked.problems == [] and checked.config == with_sources(count)
    assert form.check_command(checked.as_json()["command"], [tmp_path]).config == checked.config


def test_more_than_ten_sources_keep_their_order():
    values = {f"data.sources.{n}.path": f"file{n}" for n in reversed(range(12))}
    checked = form.check_values("debug", values, [])
    assert [source.path for source in checked.config.data.sources] == [
        f"file{n}" for n in range(12)
    ]


def test_all_problems_are_named_with_their_keys():
    values = {
        "optim.lr": "fast", "model.dims": 5, "data.batch_size": 5, "optim.accumulation": 2,
        "model.num_layers": 0, "data.sources.0.weight": -1, "data.sources.5.path": "x",
        "log.every_steps": "", "model.mixers": ["attention", "magic"], "model": 3, "steps": 7,
    }  # fmt: skip
    checked = form.check_values("debug", values, [])
    keys = {problem["key"] for problem in checked.problems}
    wrong = {"optim.lr", "model.dims", "model.num_layers", "data.sources.5.path",
             "log.every_steps", "model", "steps"}  # fmt: skip
    assert wrong <= keys and keys & {"data.batch_size", "optim.accumulation"}
    assert any(key and key.startswith("model.mixers") for key in keys)
    assert any(key and key.startswith("data.sources") for key in keys)
    assert all(problem["message"] for problem in checked.problems)


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("bitttt train --config=debug", {}),
        ("$ bitttt train --config debug --config.steps 1e3", {"steps": 1000}),
        ("python -m bitttt_jax.train --config=debug --config.seed=3", {"seed": 3}),
        ("/usr/bin/python3.12 -m bitttt_jax train --config=debug --workdir=x --platform=cpu", {}),
        ("JAX_PLATFORMS=cpu ./venv/bin/bitttt train \\\n --config=debug", {}),
        ("bitttt train --config=debug --config.data.sources=a,b",
         {"data.sources.0.path": "a", "data.sources.1.path": "b"}),
        ("bitttt train --config=debug --config.seed=3 --config.seed=4", {"seed": 4}),
        ("bitttt train --config=debug --config.data.sources=a,b --config.data.sources.1.weight=2",
         {"data.sources.0.path": "a", "data.sources.1.path": "b", "data.sources.1.weight": 2.0}),
    ],
)  # fmt: skip
def test_pasted_commands(command: str, values: dict[str, Any]):
    checked = form.check_command(command, [])
    assert (checked.problems, checked.preset, checked.values) == ([], "debug", values)


def test_a_pasted_size_becomes_values():
    checked = form.check_command("bitttt train --config=quickstart --size=1m --config.seed=3", [])
    wanted = parse_train_flags(["--config=quickstart", "--size=1m", "--config.seed=3"]).config
    assert checked.config == wanted and checked.values["seed"] == 3


@pytest.mark.parametrize(
    "command",
    [
        "", "rm -rf /", "bitttt", "bitttt chat --model=x", "bitttt train", "train --config=debug",
        "bitttt train --config=nix", "bitttt train --config=debug --nix", "'unbalanced",
        "bitttt train --config=debug extra", "bitttt train --config=debug --config.seed",
        "bitttt train --config=debug --platform=abacus", "bash -c 'bitttt train --config=debug'",
    ],
)  # fmt: skip
def test_what_is_no_command(command: str):
    with pytest.raises(ConfigError):
        form.check_command(command, [])


def test_a_pasted_problem_has_its_key():
    checked = form.check_command("bitttt train --config=debug --config.optim.lr=x --config.a=1", [])
    assert {problem["key"] for problem in checked.problems} == {"optim.lr", "a"}


def test_bounds_are_those_of_the_checks():
    default = TrainConfig()
    checked = 0
    for field in schema()["fields"]:
        if field["type"] in ("int", "float") and field["min"] is not None:
            below = field["min"] - (1 if field["type"] == "int" else 0.5)
            override = f"--config.{field['key']}={below}"
            with pytest.raises(ConfigError):
                apply_overrides(default, ["--config.data.tokenizer.kind=bpe", override])
            checked += 1
    assert checked > 20
    bounds = {field["key"]: (field["min"], field["max"]) for field in schema()["fields"]}
    assert bounds["steps"] == (1, None) and bounds["mesh.data"] == (-1, None)
    assert bounds["data.validation_fraction"] == (0, 1)
    assert bounds["data.tokenizer.vocab_size"] == (258, None)
    assert bounds["model.dim"] == (1, None) and bounds["optim.warmup_steps"] == (0, None)


def test_the_dial_keeps_what_it_does_not_set(client: TestClient):
    body = {"preset": PRESET, "values": {"seed": 7, "model.dim": 96, "optim.lr": 9.0}}
    small = client.post("/api/form/size", json={**body, "size": "1m"}).json()
    assert small["ok"] and small["values"]["seed"] == 7 and small["config"]["optim"]["lr"] < 1
    again = {**body, "values": small["values"]}
    large = client.post("/api/form/size", json={**again, "size": "10m"}).json()
    back = client.post(
        "/api/form/size", json={"preset": PRESET, "values": large["values"], "size": "1m"}
    ).json()
    assert back["values"] == small["values"] != large["values"]
    answer = client.post("/api/form/size", json={**body, "size": "huge"})
    assert answer.status_code == 400 and "huge" in answer.json()["error"]["what"]


def test_form_bodies(client: TestClient):
    assert client.get("/api/schema").json() == json.loads(json.dumps(schema()))
    for values in ({"seed": None}, {"seed": {"a": 1}}, {"seed": [[1]]}, [1], "x"):
        answer = client.post("/api/form/check", json={"preset": "debug", "values": values})
        assert answer.status_code == 400
    answer = client.post("/api/form/check", json={"preset": "debugg"})
    assert answer.status_code == 400 and "debug" in answer.json()["error"]["what"]
    answer = client.post("/api/form/estimate", json={"preset": "debug", "values": {"steps": 0}})
    assert answer.json()["problems"][0]["key"] == "steps"
    answer = client.post("/api/form/estimate", json={"preset": "debug", "device": "moon"})
    assert answer.status_code == 400

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from bitttt_jax.config import DataConfig, ModelConfig, SourceConfig, TrainConfig
from bitttt_jax.config_loading import (
    apply_overrides,
    describe,
    difference,
    flatten,
    from_json,
    load_config,
    preset_names,
    to_json,
)
from bitttt_jax.errors import ConfigError

DEFAULT = TrainConfig()


def override(*flags: str) -> TrainConfig:
    return apply_overrides(DEFAULT, [f"--config.{flag}" for flag in flags])


def override_error(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        override(*flags)
    return str(caught.value)


class TestOverrides:
    @pytest.mark.parametrize(
        ("flag", "key", "value"),
        [
            ("optim.lr=3e-4", "optim.lr", 3e-4),
            ("steps=2000", "steps", 2000),
            ("steps=1e4", "steps", 10_000),
            ("steps=10_000", "steps", 10_000),
            ("steps=2.5E3", "steps", 2500),
            ("mesh.data=-1", "mesh.data", -1),
            ("log.tensorboard=False", "log.tensorboard", False),
            ("log.tensorboard=false", "log.tensorboard", False),
            ("name=1e4", "name", "1e4"),
            ("eval.sample_prompt=a=b, c", "eval.sample_prompt", "a=b, c"),
            ("eval.sample_prompt=", "eval.sample_prompt", ""),
            ("model.mixers=ttt_linear,attention", "model.mixers", ("ttt_linear", "attention")),
            ("model.mixers=ttt_mlp", "model.mixers", ("ttt_mlp",)),
            ("optim.schedule=wsd", "optim.schedule", "wsd"),
            ("data.sources.0.path=a,b.txt", "data.sources.0.path", "a,b.txt"),
        ],
    )
    def test_sets_one_value_with_its_type(self, flag: str, key: str, value: object):
        changed = flatten(override(flag))
        assert changed == flatten(DEFAULT) | {key: value}
        assert type(changed[key]) is type(value)

    def test_none_changes_nothing(self):
        assert override() == DEFAULT

    def test_later_one_wins(self):
        assert override("steps=200", "steps=300").steps == 300

    def test_values_that_only_fit_together(self):
        model = override("model.dim=320", "model.num_heads=5").model
        assert (model.dim, model.num_heads) == (320, 5)

    def test_sources_and_then_their_keys(self):
        sources = override(
            "data.sources=a,b", "data.sources.0.glob=*.md", "data.sources.1.weight=2"
        ).data.sources
        assert sources == (SourceConfig(path="a", glob="*.md"), SourceConfig(path="b", weight=2.0))
        sources = override("data.sources.0.glob=*.md", "data.sources=a").data.sources
        assert sources == (SourceConfig(path="a"),)  # the later one wins

    def test_paths_alone_make_new_sources(self):
        weighted = SourceConfig(path="old", weight=3.0)
        config = dataclasses.replace(DEFAULT, data=DataConfig(sources=(weighted,)))
        changed = apply_overrides(config, ["--config.data.sources=a,b"])
        assert changed.data.sources == (SourceConfig(path="a"), SourceConfig(path="b"))

    def test_index_after_the_last_adds_a_source(self):
        sources = override("data.sources.1.path=b", "data.sources.1.weight=2").data.sources
        assert sources == (SourceConfig(), SourceConfig(path="b", weight=2.0))

    def test_all_problems_are_listed(self):
        message = override_error("dim=3", "steps=abc", "optim.schedule=cosin", "log.tensorboard")
        assert "--config.dim is unknown (did you mean --config.model.dim?)" in message
        assert "--config.steps='abc' should be a valid integer" in message
        assert "--config.optim.schedule='cosin' should be 'cosine', 'wsd'" in message
        assert "--config.log.tensorboard lacks its =VALUE" in message

    @pytest.mark.parametrize(
        ("flag", "words"),
        [
            ("optm.lr=3", "did you mean --config.optim.lr?"),
            ("optim.warm_steps=3", "did you mean --config.optim.warmup_steps"),
            ("mesh.rows=3", "--config.mesh has data, fsdp, tensor"),
            ("model=3", "--config.model is a group"),
            ("model.dim.x=3", "--config.model.dim.x is unknown"),
            ("model.mixers.0=attention", "--config.model.mixers.0 is unknown"),
            ("model.mixers=attention,rnn", "'rnn' should be 'attention', 'ttt_linear'"),
            ("data.sources.5.path=x", "--config.data.sources.5.path is unknown"),
            ("data.sources.1=x", "--config.data.sources.1 is a group"),
            ("=3", "--config. is unknown"),
            ("steps=1.5", "--config.steps='1.5' should be a valid integer"),
            ("steps=1e999", "--config.steps='1e999' should be a valid integer"),
            ("steps=True", "--config.steps='True' should be a valid integer"),
            ("optim.eps=nan", "--config.optim.eps='nan' should be a finite number"),
            ("log.tensorboard=maybe", "--config.log.tensorboard='maybe' should be a valid boolean"),
            ("model.num_heads=3", "model.dim=256 must be a multiple of model.num_heads=3"),
        ],
    )
    def test_mistake_is_explained(self, flag: str, words: str):
        assert words in override_error(flag)


class TestJson:
    def test_round_trip_is_exact_for_random_configurations(self):
        rng = random.Random(0)
        for _ in range(20):
            flags = [
                f"--config.optim.lr={rng.random()!r}",
                f"--config.optim.eps={rng.random() * 1e-12!r}",
                f"--config.seed={rng.randrange(2**62)}",
                f"--config.eval.sample_prompt={''.join(map(chr, rng.sample(range(1, 3000), 9)))}",
                f"--config.model.mixers={rng.choice(['ttt_mlp', 'attention,ttt_linear'])}",
                f"--config.data.sources={','.join('abc'[: rng.randint(1, 3)])}",
            ]
            config = apply_overrides(DEFAULT, flags)
            assert from_json(to_json(config)) == config

    def test_absent_keys_take_defaults(self):
        assert from_json('{"steps": 500}') == dataclasses.replace(DEFAULT, steps=500)

    def test_whole_number_stands_for_a_float(self):
        assert from_json('{"max_minutes": 5}').max_minutes == 5.0

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"model": {"dmi": 3}}', "model.dmi is unknown (did you mean model.dim?)"),
            ('{"steps": "100"}', "steps='100' should be a valid integer"),
            ('{"steps": 1.5}', "steps=1.5"),
            ('{"log": {"tensorboard": 1}}', "log.tensorboard=1 should be a valid boolean"),
            ('{"data": {"sources": [{"pth": "x"}]}}', "data.sources.0.pth is unknown"),
            ('{"optim": {"lr": NaN}}', "optim.lr"),
            ('{"steps": 3', "Invalid JSON"),
            ("[]", "the configuration should be an object"),
            ('{"model": {"dim": 5}}', "model.dim=5"),
        ],
    )
    def test_mistake_is_explained(self, text: str, words: str):
        with pytest.raises(ConfigError) as caught:
            from_json(text)
        assert words in str(caught.value)


class TestLoadConfig:
    def test_json_file_of_an_earlier_run(self, tmp_path: Path):
        config = override("steps=123", "data.sources=a,b")
        path = tmp_path / "config.json"
        path.write_text(to_json(config))
        assert load_config(str(path)) == config

    def test_python_file(self, tmp_path: Path):
        path = tmp_path / "mine.py"
        path.write_text(
            "import dataclasses\n"
            "from bitttt_jax.config_loading import load_config\n"
            "STEPS = 77\n"
            "def get_config():\n"
            "    return dataclasses.replace(load_config('debug'), steps=STEPS)\n"
        )
        assert load_config(str(path)) == dataclasses.replace(load_config("debug"), steps=77)
        assert list(tmp_path.iterdir()) == [path]  # no __pycache__ beside the user's file

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("x = 1", "defines no function get_config()"),
            ("get_config = 3", "defines no function get_config()"),
            ("def get_config(): return {}", "returned {}, not a TrainConfig"),
            ("\ndef get_config():\n    return 1 / 0", "in line 3: ZeroDivisionError"),
            ("def get_config(:", "SyntaxError"),
            ("import no_such_package", "No module named 'no_such_package'"),
            (
                "from bitttt_jax.config import *\ndef get_config(): return ModelConfig(dim=-1)",
                "model.dim must be positive, got -1",
            ),
        ],
    )
    def test_broken_python_file_is_named(self, tmp_path: Path, source: str, words: str):
        path = tmp_path / "broken.py"
        path.write_text(source)
        with pytest.raises(ConfigError) as caught:
            load_config(str(path))
        assert words in str(caught.value)
        assert str(path) in str(caught.value)

    def test_broken_json_file_is_named(self, tmp_path: Path):
        path = tmp_path / "config.json"
        path.write_text('{"stps": 1}')
        with pytest.raises(ConfigError) as caught:
            load_config(str(path))
        assert str(path) in str(caught.value)
        assert "stps is unknown (did you mean steps?)" in str(caught.value)

    @pytest.mark.parametrize("spec", ["missing.py", "missing.json", "missing/config.json"])
    def test_missing_file(self, spec: str):
        with pytest.raises(ConfigError, match=spec):
            load_config(spec)

    def test_unknown_preset_suggests_and_lists(self):
        with pytest.raises(ConfigError) as caught:
            load_config("quickstar")
        assert "did you mean quickstart?" in str(caught.value)
        assert "ttt_125m" in str(caught.value)


class TestPresets:
    @pytest.mark.parametrize("name", preset_names())
    def test_loads_under_its_own_name(self, name: str):
        config = load_config(name)
        assert config.name == name
        assert from_json(to_json(config)) == config
        # Tensor cores, lanes and packing want multiples of 32.
        assert config.model.dim % 32 == 0
        vocab_size = config.data.tokenizer.vocab_size
        if config.data.tokenizer.kind == "bpe":
            assert config.model.vocab_size in (0, vocab_size)

    @pytest.mark.parametrize("name", preset_names())
    def test_docstring_gives_command_hardware_and_parameters(self, name: str):
        folder = Path(__file__).parent.parent / "configs"
        text = (folder / f"{name}.py").read_text().split('"""')[1]
        assert f"bitttt train --config={name}" in text
        assert "Hardware:" in text
        assert "\nParameters: " in text

    @pytest.mark.parametrize(
        ("name", "tokens"),
        [
            ("ttt_125m", 2.5e9),
            ("ttt_350m", 7e9),
            ("ttt_760m", 15e9),
            ("ttt_1b3", 26e9),
            ("bitnet_700m", 100e9),
            ("bitnet_1b3", 100e9),
            ("bitnet_3b", 100e9),
        ],
    )
    def test_published_token_budget(self, name: str, tokens: float):
        config = load_config(name)
        budget = config.steps * config.data.batch_size * config.data.seq_len
        assert budget == pytest.approx(tokens, rel=0.02)
        # A real corpus has to be named, and the message about its absence says how.
        assert "--config.data.sources.0.path=" in config.data.sources[0].path

    @pytest.mark.parametrize("name", ["ttt_125m", "ttt_350m", "ttt_760m", "ttt_1b3"])
    def test_ttt_schedule(self, name: str):
        config = load_config(name)
        assert config.optim.warmup_steps == config.steps / 10
        assert config.optim.lr * config.optim.final_lr_ratio == pytest.approx(1e-5)


class TestDifferenceAndDescription:
    def test_difference_lists_keys_with_both_values(self):
        changed = override("optim.lr=1e-3", "model.mixers=ttt_mlp")
        assert difference(DEFAULT, DEFAULT) == []
        assert difference(DEFAULT, changed) == [
            ("model.mixers", ("attention",), ("ttt_mlp",)),
            ("optim.lr", 1.5e-3, 1e-3),
        ]

    def test_difference_of_lengths(self):
        rows = difference(DEFAULT, override("data.sources.1.path=b"))
        assert ("data.sources.1.path", None, "b") in rows
        assert {key.rpartition(".")[0] for key, _, _ in rows} == {"data.sources.1"}

    def test_description_covers_exactly_the_keys_with_the_values_in_effect(self):
        config = override("model.dim=512")
        assert {key.name: key.value for key in describe(config)} == flatten(config)

    def test_description_shows_types(self):
        types = {key.name: key.type for key in describe(DEFAULT)}
        assert types["steps"] == "INT"
        assert types["optim.lr"] == "FLOAT"
        assert types["name"] == "TEXT"
        assert types["log.tensorboard"] == "True|False"
        assert types["model.mlp"] == "swiglu|relu2_glu"
        assert types["model.mixers"].startswith("attention|ttt_linear")

    def test_flat_keys_follow_nesting(self):
        keys = flatten(TrainConfig(model=ModelConfig(dim=512)))
        assert keys["model.dim"] == 512
        assert keys["model.ttt.mini_batch"] == 16
        assert keys["data.sources.0.path"] == "python-stdlib"

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from bitttt_jax.config.sizes import resize
from bitttt_jax.config_loading import flatten, from_json, load_config
from bitttt_jax.errors import ConfigError
from bitttt_jax.train_flags import parse_train_flags


def parse_error(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_train_flags(argv)
    return str(caught.value)


def test_defaults():
    flags = parse_train_flags(["--config=debug"])
    assert flags.config == flags.preset == load_config("debug")
    assert flags.workdir == "runs/debug"
    assert (flags.resume, flags.console, flags.platform) == ("auto", "auto", "")
    assert (flags.coordinator, flags.num_processes, flags.process_id) == ("", 0, 0)
    assert not flags.dry_run


def test_launcher_flags_and_overrides_in_any_order_and_spelling():
    first = ["--config.steps", "1e3", "--workdir", "runs/x", "--config.optim.lr=0.1"]
    then = ["--config=debug", "--resume=never", "--console=plain", "--dry_run", "--sim_devices=4"]
    last = ["--platform=cpu", "--coordinator=h0:1", "--num_processes=3", "--process_id=2"]
    flags = parse_train_flags([*first, *then, *last])
    assert (flags.config.steps, flags.config.optim.lr) == (1000, 0.1)
    assert flags.preset == load_config("debug")
    assert (flags.workdir, flags.resume, flags.console) == ("runs/x", "never", "plain")
    assert (flags.platform, flags.sim_devices, flags.dry_run) == ("cpu", 4, True)
    assert (flags.coordinator, flags.num_processes, flags.process_id) == ("h0:1", 3, 2)


def test_parsing_twice_is_independent():
    parse_train_flags(["--config=debug", "--dry_run", "--workdir=a"])
    assert not parse_train_flags(["--config=debug"]).dry_run


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["--config is missing", "quickstart"]),
        (["--config=debug", "--workdri=x"], ["--workdri is no flag (did you mean --workdir?)"]),
        (["--config=debug", "--lr=3"], ["--lr is no flag (did you mean --config.optim.lr?)"]),
        (["debug"], ["'debug' (did you mean --config=debug?)"]),
        (["--a=1", "--b", "c"], ["--a is no flag", "--b is no flag", "'c'"]),
        (["--config=debug", "--resume=yes"], ["--resume=yes", "auto|never|force"]),
        (["--config=debug", "--sim_devices=-1"], ["--sim_devices=-1"]),
        (["--config=debug", "--sim_devices=two"], ["--sim_devices=two"]),
        (["--config=debug", "--sim_devices=2", "--platform=gpu"], ["--platform=gpu"]),
        (["--config=debug", "--num_processes=2"], ["--coordinator=HOST:PORT", "--process_id=I"]),
        (["--config=debug", "--coordinator=h:1"], ["--num_processes=N and --process_id=I missing"]),
        (
            ["--config=debug", "--coordinator=h:1", "--num_processes=2", "--process_id=2"],
            ["--process_id=2 must be below --num_processes=2"],
        ),
        (["--config=debug", "--config.step=1"], ["--config.steps"]),
        (["--config=debug", "--config.steps"], ["--config.steps lacks its =VALUE"]),
        (["--config=debgu"], ["did you mean debug?"]),
    ],
)
def test_mistake_is_explained(argv: list[str], words: list[str]):
    message = parse_error(*argv)
    assert all(word in message for word in words)


def test_single_process_may_be_given_by_number():
    assert parse_train_flags(["--config=debug", "--num_processes=1"]).num_processes == 1


def test_print_config_writes_only_json(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse_train_flags(["--config=debug", "--config.steps=99", "--print_config"])
    assert not caught.value.code
    assert from_json(capsys.readouterr().out).steps == 99


def test_help_shows_examples_flags_and_every_key(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        parse_train_flags(["--help"])
    assert not caught.value.code
    text = capsys.readouterr().out
    assert text.index("usage:") < text.index("Examples:") < text.index("--workdir=...")
    for key in flatten(load_config("debug")):
        assert f"  --config.{key}=" in text
    assert "--config.model.mlp=swiglu  (swiglu|relu2_glu)" in text
    assert "Hidden width of the gated MLP." in text


def test_help_shows_the_values_of_the_preset_and_ignores_other_mistakes(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit):
        parse_train_flags(["--config=ttt_1b3", "-h", "--nonsense"])
    assert "--config.model.dim=2048" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--help", "--print_config"])
def test_answers_without_jax(flag: str):
    code = (
        "import sys\n"
        "from bitttt_jax.train_flags import parse_train_flags\n"
        "try:\n"
        f"    parse_train_flags(['--config=quickstart', '{flag}'])\n"
        "finally:\n"
        "    heavy = {'jax', 'flax', 'orbax', 'grain', 'tensorboard'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_size_is_set_before_the_overrides():
    sized = parse_train_flags(["--config=quickstart", "--size=30M"])
    assert (sized.config.name, sized.workdir) == ("quickstart_30m", "runs/quickstart_30m")
    assert sized.preset == load_config("quickstart")
    assert sized.config.model == resize(sized.preset, 30_000_000).model
    changed = parse_train_flags(
        ["--config.model.num_layers=2", "--config=quickstart", "--size=30m"]
    )
    assert changed.config.model == dataclasses.replace(sized.config.model, num_layers=2)


@pytest.mark.parametrize("size", ["big", "3", "1m"])
def test_sizes_that_are_refused_name_the_flag(size: str):
    with pytest.raises(ConfigError, match=f"^--size={size}: "):
        parse_train_flags(["--config=ttt_125m", f"--size={size}"])


def test_addresses_are_no_workdirs() -> None:
    with pytest.raises(ConfigError, match=r"--workdir=gs://bucket/run is no path.*\n.*renames"):
        parse_train_flags(["--config=debug", "--workdir=gs://bucket/run"])

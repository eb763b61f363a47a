"""Going on, starting over, and refusing to."""

import dataclasses
import json

import pytest

from bitttt_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TrainConfig,
    TTTConfig,
)
from bitttt_jax.errors import ConfigError
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.resume import check_identity, compare, prepare

CONFIG = TrainConfig()
replace = dataclasses.replace


def to_json(config):
    return json.dumps(dataclasses.asdict(config))


def add_checkpoint(run, step):
    folder = run.checkpoints_path / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state/_METADATA").write_text("{}")
    (folder / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')


def start(path, config, mode="auto"):
    with RunDirectory.open(path, writer=True) as run:
        return prepare(run, to_json(config), mode)


@pytest.fixture
def trained(tmp_path):
    """A folder in which CONFIG ran to step 12 and saved at 5 and 10."""
    with RunDirectory.open(tmp_path / "run", writer=True) as run:
        prepare(run, to_json(CONFIG), "auto")
        for step in range(1, 13):
            run.metric({"step": step})
        add_checkpoint(run, 5)
        add_checkpoint(run, 10)
        run.log_path.write_text("hello\n")
    return run


SAME_RUN = [
    replace(CONFIG, name="other", steps=2000, max_minutes=5.0),
    replace(CONFIG, optim=OptimConfig(lr=1e-4, schedule="wsd", accumulation=2)),
    replace(CONFIG, log=LogConfig(every_steps=3), checkpoint=CheckpointConfig(keep_last=5)),
    replace(CONFIG, eval=EvalConfig(every_steps=3), mesh=MeshConfig(fsdp=2)),
    replace(CONFIG, model=ModelConfig(remat="full", scan_unroll=2, ttt=TTTConfig(remat_group=2))),
]
OTHER_RUN = {
    "seed": replace(CONFIG, seed=1),
    "optim.name": replace(CONFIG, optim=OptimConfig(name="muon")),
    "model.dim": replace(CONFIG, model=ModelConfig(dim=512)),
    "model.mixers.0": replace(CONFIG, model=ModelConfig(mixers=("ttt_linear",))),
    "model.ttt.mini_batch": replace(CONFIG, model=ModelConfig(ttt=TTTConfig(mini_batch=8))),
    "data.batch_size": replace(CONFIG, data=DataConfig(batch_size=8)),
    "data.sources.0.path": replace(CONFIG, data=DataConfig(sources=(SourceConfig(path="x"),))),
    "data.sources.1.path": replace(
        CONFIG, data=DataConfig(sources=(SourceConfig(), SourceConfig(path="x")))
    ),
}


def test_runs_from_before_a_key_was_there_go_on(trained):
    old = dataclasses.asdict(CONFIG)
    del old["data"]["clean"], old["data"]["chat_template"], old["model"]["remat"]
    trained.config_path.write_text(json.dumps(old))
    plan = start(trained.path, CONFIG)
    assert (plan.step, plan.changed) == (10, ())
    trained.config_path.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r'data\.chat_template +"" +"roles"'):
        start(trained.path, replace(CONFIG, data=DataConfig(chat_template="roles")))


@pytest.mark.parametrize("config", SAME_RUN)
def test_what_may_change(trained, config):
    plan = start(trained.path, config)
    assert plan.step == 10
    assert plan.changed
    assert trained.read_config() == to_json(config)
    (resume, changed), _ = trained.read_events()
    assert (resume["kind"], resume["step"], resume["forced"]) == ("resume", 10, False)
    assert changed["kind"] == "config"
    assert changed["changed"][0].keys() == {"key", "in_run", "asked"}


@pytest.mark.parametrize("key, config", OTHER_RUN.items())
def test_another_run_is_refused_and_nothing_changes(trained, key, config):
    before = {path: path.read_bytes() for path in trained.path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as error:
        start(trained.path, config)
    assert error.value.exit_code == 2
    assert f"\n  {key} " in error.value.why
    for way_out in ("--workdir=", "--resume=force", "--resume=never"):
        assert way_out in error.value.fix
    assert before == {path: path.read_bytes() for path in trained.path.rglob("*") if path.is_file()}


def test_the_difference_is_a_table_of_three_columns():
    other = replace(CONFIG, seed=7, model=ModelConfig(dim=512, mixers=("ttt_mlp", "attention")))
    with pytest.raises(ConfigError) as error:
        check_identity(to_json(CONFIG), to_json(other), "runs/x")
    assert error.value.why.splitlines() == [
        "key             in the run   asked for",
        "  seed            0            7",
        "  model.dim       256          512",
        '  model.mixers.0  "attention"  "ttt_mlp"',
        '  model.mixers.1  (absent)     "attention"',
    ]


def test_identical_configs_have_no_differences():
    assert compare(to_json(CONFIG), to_json(CONFIG)) == []
    assert compare('{"a": null}', "{}")[0].key == "a"
    check_identity(to_json(CONFIG), to_json(CONFIG), "runs/x")


def test_resuming_drops_the_rows_that_come_again(trained):
    start(trained.path, CONFIG)
    assert [row["step"] for row in trained.read_metrics()[0]] == list(range(1, 11))


def test_force_goes_on_with_differences(trained):
    plan = start(trained.path, OTHER_RUN["data.batch_size"], "force")
    assert plan.step == 10
    events = trained.read_events()[0]
    assert events[0]["forced"] is True
    assert events[1]["changed"] == [{"key": "data.batch_size", "in_run": 4, "asked": 8}]


def test_never_moves_everything_aside(trained):
    plan = start(trained.path, CONFIG, "never")
    assert plan.step is None
    old = trained.path / "old-1"
    assert plan.moved_to == old
    assert (old / "train.log").read_text() == "hello\n"
    assert RunDirectory(old).checkpoint_steps() == [5, 10]
    assert len(RunDirectory(old).read_metrics()[0]) == 12
    assert RunDirectory(old).read_config() == to_json(CONFIG)
    assert sorted(p.name for p in trained.path.iterdir()) == ["config.json", "old-1", "status.json"]
    assert start(trained.path, CONFIG, "never").moved_to == trained.path / "old-2"
    assert start(trained.path.parent / "fresh", CONFIG, "never").moved_to is None


def test_without_checkpoints_the_same_run_starts_over(tmp_path):
    with RunDirectory.open(tmp_path, writer=True) as run:
        prepare(run, to_json(CONFIG), "auto")
        run.metric({"step": 1})
    plan = start(tmp_path, CONFIG)
    assert plan.step is None and plan.moved_to is None
    assert run.read_metrics() == ([], 0)


def test_without_checkpoints_another_run_takes_the_folder(tmp_path):
    """As after "out of memory at the first step": the smaller batch must just start."""
    with RunDirectory.open(tmp_path, writer=True) as run:
        prepare(run, to_json(CONFIG), "auto")
        run.fail(RuntimeError("RESOURCE_EXHAUSTED"))
    plan = start(tmp_path, OTHER_RUN["data.batch_size"])
    assert plan.moved_to == tmp_path / "old-1"
    assert (tmp_path / "old-1/error.json").exists()
    assert not run.error_path.exists()
    assert run.read_config() == to_json(OTHER_RUN["data.batch_size"])


def test_other_processes_come_to_the_same_plan_and_touch_nothing(trained):
    before = sorted(trained.path.rglob("*"))
    with RunDirectory.open(trained.path, writer=False) as run:
        assert prepare(run, to_json(CONFIG), "auto").step == 10
        assert prepare(run, to_json(CONFIG), "never").step is None
    assert sorted(trained.path.rglob("*")) == before


def test_damaged_config_is_no_traceback(trained):
    trained.config_path.write_text('{"seed"')
    with pytest.raises(ConfigError, match="isn't valid JSON"):
        start(trained.path, CONFIG)

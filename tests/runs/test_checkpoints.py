"""Checkpoints: retention, restores on other meshes, refusals, and what a kill leaves behind."""

import concurrent.futures
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import CheckpointConfig
from bitttt_jax.errors import CheckpointError
from bitttt_jax.runs.checkpoints import LAYOUT, Checkpoints
from bitttt_jax.runs.directory import saved_steps

CONFIG = CheckpointConfig(every_steps=1, every_minutes=0, keep_last=2, keep_best=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array


def make_state(seed=0, width=6, dtype=jnp.float32):
    key = jax.random.key(seed)
    params = {
        "embed": jax.random.normal(key, (8, width), dtype),
        "large": jax.random.normal(key, (64, 512)),
        "blocks": {"w": jax.random.normal(key, (2, width, 4)).astype(jnp.bfloat16)},
    }
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, opt.init(params), key)


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def assert_equal(a, b):
    jax.tree.map(_assert_leaf_equal, a, b)


def _assert_leaf_equal(x, y):
    assert x.dtype == y.dtype
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with one checkpoint, to be copied by tests that damage it."""
    folder = tmp_path_factory.mktemp("saved") / "ckpt"
    with Checkpoints(folder, CONFIG, metadata={"config_sha256": "abc"}) as checkpoints:
        checkpoints.save(7, make_state(7), metrics={"eval/loss": 2.5, "eval/bpb": 1.1})
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "ckpt")


def test_restores_what_was_saved_bit_for_bit(saved):
    state = make_state(7)
    with Checkpoints(saved) as checkpoints:
        assert_equal(checkpoints.restore(abstract(state)), state)
        assert checkpoints.metadata(7) == {"config_sha256": "abc", "layout": LAYOUT}
        assert checkpoints.metrics(7) == {"eval/loss": 2.5, "eval/bpb": 1.1}
        files = [f for f in (saved / "7").rglob("*") if f.is_file()]
        assert checkpoints.size(7) == sum(f.stat().st_size for f in files) > 0


def test_restores_a_part(saved):
    state = make_state(7)
    part = {"params": state.params}
    with Checkpoints(saved) as checkpoints:
        assert_equal(checkpoints.restore(abstract(part), partial=True), part)
        with pytest.raises(
            CheckpointError,
            match=r"opt_state\.1\.0\.mu\.embed: saved float32\[8,6\], asked nothing",
        ):
            checkpoints.restore(abstract(part))


@pytest.mark.parametrize(
    "changed, message",
    [
        (make_state(7, width=10), r"params\.embed: saved float32\[8,6\], asked float32\[8,10\]"),
        (make_state(7, dtype=jnp.bfloat16), r"params\.embed: saved float32\[8,6\], asked bfloat16"),
        (
            dataclasses.replace(make_state(7), params=make_state(7).params | {"new": jnp.zeros(3)}),
            r"params\.new: saved nothing, asked float32\[3\]",
        ),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_refuses_another_tree(saved, changed, message, partial):
    with Checkpoints(saved) as checkpoints, pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(abstract(changed), partial=partial)
    assert str(saved / "7") in error.value.what
    assert "differ" in error.value.what


def test_keeps_latest_best_and_periodic(tmp_path):
    config = CheckpointConfig(
        every_steps=1, every_minutes=0, keep_last=2, keep_best=1, keep_every_steps=4
    )
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 4: None, 5: 2.0, 6: None, 7: 9.0, 8: None, 9: 1.5}
    with Checkpoints(tmp_path, config) as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"eval/loss": loss}
            assert checkpoints.save(step, {"x": jnp.full(3, step)}, metrics=metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 8, 9]
        assert checkpoints.latest_step() == 9
        assert checkpoints.best_step() == 2
    # The same is known to a process that starts later, and goes on being kept.
    with Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.best_step() == 2
        checkpoints.save(10, {"x": jnp.full(3, 10)}, metrics={"eval/loss": 0.5})
        checkpoints.save(11, {"x": jnp.full(3, 11)})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 8, 10, 11]
        assert checkpoints.best_step() == 10
        np.testing.assert_array_equal(
            checkpoints.restore({"x": jnp.zeros(3, jnp.int32)}, 8)["x"], np.full(3, 8)
        )


def test_keep_best_zero_and_no_metrics(tmp_path):
    config = CheckpointConfig(every_steps=1, every_minutes=0, keep_last=1, keep_best=0)
    with Checkpoints(tmp_path, config) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.zeros(1)}, metrics={"eval/loss": float(step)})
        checkpoints.save(3, {"x": jnp.zeros(1)})
        checkpoints.wait()
        assert checkpoints.steps() == [3]
        assert checkpoints.best_step() is None


def test_saves_when_due_and_never_twice(tmp_path):
    config = CheckpointConfig(every_steps=3, every_minutes=0, keep_last=9)
    state = {"x": jnp.zeros(2)}
    with Checkpoints(tmp_path, config) as checkpoints:
        started = [step for step in range(1, 8) if checkpoints.save(step, state)]
        assert started == [3, 6]
        assert checkpoints.save(7, state, force=True)
        assert not checkpoints.save(7, state, force=True)
        checkpoints.wait()
        assert [saved.step for saved in checkpoints.poll()] == [3, 6, 7]
        assert checkpoints.poll() == []
        assert checkpoints.steps() == [3, 6, 7]


def test_time_based_saves_ask_for_agreement(tmp_path):
    opinions = []

    def agree(opinion):
        opinions.append(opinion)
        return len(opinions) == 2

    config = CheckpointConfig(every_steps=10, every_minutes=1e-9)
    with Checkpoints(tmp_path, config, agree=agree) as checkpoints:
        steps = (8, 9, 9, 10, 11, 11)  # asked again, it answers again without asking
        answers = [checkpoints.due(step) for step in steps]
        assert answers == [False, True, True, True, False, False]
    assert opinions == [True, True, True]  # not at step 10, where all processes know
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=0, every_minutes=60)) as checkpoints:
        assert not checkpoints.due(10)


def test_poll_reports_size_path_and_time(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros((64, 64))})
        deadline = time.monotonic() + 30
        while not (completed := checkpoints.poll()):
            assert time.monotonic() < deadline
        (saved,) = completed
        assert saved.path == tmp_path / "1"
        assert saved.size == checkpoints.size(1)
        assert 0 < saved.seconds < 30


def test_the_saved_state_may_be_donated(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = step({"x": jnp.zeros((512, 512))})
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(3):
            state = step(state)
        checkpoints.wait()
        restored = checkpoints.restore(abstract(state))
    np.testing.assert_array_equal(restored["x"], np.ones((512, 512)))


def test_reader_needs_a_checkpoint_and_writes_nothing(tmp_path, copied):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        Checkpoints(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (copied / "9").mkdir()
    before = sorted(copied.rglob("*"))
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.steps() == [7]
        with pytest.raises(ValueError, match="read only"):
            checkpoints.save(8, {})
    assert sorted(copied.rglob("*")) == before


def test_missing_step_names_the_others(saved):
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(CheckpointError, match="complete steps: 7"),
    ):
        checkpoints.restore(abstract(make_state(7)), 8)


def test_refuses_newer_layouts_and_other_programs(copied):
    file = copied / "7/_CHECKPOINT_METADATA"
    text = file.read_text()
    file.write_text(text.replace(f'"layout": {LAYOUT}', '"layout": 99'))
    with Checkpoints(copied) as checkpoints, pytest.raises(CheckpointError, match="layout 99"):
        checkpoints.restore(abstract(make_state(7)))
    file.write_text(text.replace('"layout"', '"other"'))
    with (
        Checkpoints(copied) as checkpoints,
        pytest.raises(CheckpointError, match="wasn't written by"),
    ):
        checkpoints.restore(abstract(make_state(7)))


def _truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _data_files(folder):
    return [f for f in (folder / "7/state").rglob("d/*") if f.is_file()]


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: [_truncate(file) for file in _data_files(f)],
        lambda f: [file.unlink() for file in _data_files(f)],
        lambda f: [file.write_bytes(bytes(len(file.read_bytes()))) for file in _data_files(f)],
        lambda f: (f / "7/state/manifest.ocdbt").unlink(),
        lambda f: _truncate(f / "7/state/manifest.ocdbt"),
        lambda f: _truncate(f / "7/state/_METADATA"),
        lambda f: (f / "7/state/_METADATA").write_text("{}"),
        lambda f: shutil.rmtree(f / "7/state/ocdbt.process_0"),
        lambda f: shutil.rmtree(f / "7/state/d"),
    ],
    ids=["short data", "no data", "zeros", "no manifest", "short manifest", "short metadata",
         "empty metadata", "no process folder", "no tree"],
)  # fmt: skip
def test_damage_is_named(copied, damage):
    damage(copied)
    with Checkpoints(copied) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(abstract(make_state(7)))
    assert f"{copied / '7'} is damaged" in str(error.value)


@pytest.mark.parametrize("part", ["_CHECKPOINT_METADATA", "state/_METADATA"])
def test_half_copied_checkpoints_are_set_aside(copied, part):
    shutil.copytree(copied / "7", copied / "12")
    (copied / "12" / part).unlink()
    (copied / "13").mkdir()
    shutil.copytree(copied / "7", copied / "14.orbax-checkpoint-tmp")
    assert saved_steps(copied) == [7]
    with Checkpoints(copied, CONFIG) as checkpoints:
        assert checkpoints.latest_step() == 7
        assert_equal(checkpoints.restore(abstract(make_state(7))), make_state(7))
        checkpoints.save(12, make_state(12))
        checkpoints.save(13, make_state(13))
        checkpoints.wait()
        # 7 stays: it is the best. Nothing that was half there counted as one of the last two.
        assert checkpoints.steps() == [7, 12, 13]
    names = [path.name for path in copied.iterdir()]
    assert sum(".incomplete-" in name for name in names) == 2
    assert not any("tmp" in name for name in names)


PRELUDE = """
import os, resource, signal, sys, threading, time
from pathlib import Path
import jax
from bitttt_jax.config import CheckpointConfig
from bitttt_jax.errors import CheckpointError
from bitttt_jax.runs.checkpoints import Checkpoints
folder = Path(sys.argv[1])
config = CheckpointConfig(every_steps=1, every_minutes=0, keep_last=1, keep_best=0)
def state(step, rows):
    return {"x": jax.random.normal(jax.random.key(step), (rows, 1024))}
checkpoints = Checkpoints(folder, config)
"""


def run_python(code, *args):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    result = run_python(
        """
        checkpoints.save(1, state(1, 8))
        checkpoints.wait()
        def kill():
            while not any("tmp" in p.name for p in folder.iterdir()):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill).start()
        checkpoints.save(2, state(2, 4096))
        checkpoints.wait()
        """,
        tmp_path,
    )
    assert result.returncode == -9
    assert saved_steps(tmp_path) == [1]
    x = jax.random.normal(jax.random.key(1), (8, 1024))
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore({"x": x})["x"], x)
        checkpoints.save(2, {"x": x})
    assert saved_steps(tmp_path) == [1, 2]


def test_a_cancelled_save_is_no_checkpoint(tmp_path, monkeypatch):
    def cancel(*_):
        raise concurrent.futures.CancelledError

    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp.PyTreeCheckpointHandler, "finalize", cancel)
            checkpoints.save(2, make_state(2))
            with pytest.raises(CheckpointError, match="given up"):
                checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(3, make_state(3))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]


def test_a_failed_write_is_reported_and_harms_nothing(tmp_path):
    # A file-size limit stands in for a full disk: the same system call fails at the same place.
    result = run_python(
        """
        checkpoints.save(1, state(1, 8))
        checkpoints.wait()
        checkpoints.poll()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        checkpoints.save(2, state(2, 1024))
        try:
            while True:
                assert checkpoints.poll() == []
        except CheckpointError as error:
            print(error)
        assert checkpoints.steps() == [1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        checkpoints.save(3, state(3, 8))
        checkpoints.wait()
        print(checkpoints.steps())
        checkpoints.close()
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/2 couldn't be written" in result.stdout
    assert "File too large" in result.stdout
    assert "earlier checkpoints are untouched" in result.stdout
    assert result.stdout.splitlines()[-1] == "[3]"
    assert "Traceback" not in result.stderr


def _sharding(shape, names, spec):
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    return NamedSharding(mesh, spec)


@pytest.mark.parametrize(
    "shape, spec", [((8,), P("fsdp")), ((2,), P(None, "fsdp")), ((1,), P()), ((8,), P())]
)
def test_restores_onto_another_mesh(tmp_path, shape, spec):
    x = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    old = _sharding((4, 2), ("data", "fsdp"), P("fsdp", "data"))
    new = _sharding(shape, ("fsdp",), spec)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, {"x": jax.device_put(x, old)})
        checkpoints.wait()
        target = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=new)}
        restored = checkpoints.restore(target)["x"]
    assert restored.sharding == new
    np.testing.assert_array_equal(restored, x)


TWO_PROCESSES = """
import sys
import jax, numpy as np
from pathlib import Path
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from bitttt_jax.config import CheckpointConfig
from bitttt_jax.runs.checkpoints import Checkpoints

folder, port, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, process)
mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, P("fsdp"))
x = np.arange(64, dtype=np.float32).reshape(16, 4)
array = jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

# By the clock of process 0 alone: process 1 would never save.
config = CheckpointConfig(every_steps=0, every_minutes=1e-9 if process == 0 else 1e9, keep_last=1)
agree = lambda opinion: bool(multihost_utils.broadcast_one_to_all(np.bool_(opinion)))
with Checkpoints(folder, config, agree=agree) as checkpoints:
    started = [
        step for step in range(1, 31)
        if checkpoints.save(step, {"x": step * array}, metrics={"eval/loss": step})
    ]
    assert started == [10, 20, 30]
    checkpoints.wait()
    assert [saved.step for saved in checkpoints.poll()] == [10, 20, 30]
    assert checkpoints.steps() == [10, 30], checkpoints.steps()
    target = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
    for shard in checkpoints.restore(target)["x"].addressable_shards:
        np.testing.assert_array_equal(shard.data, 30 * x[shard.index])
    multihost_utils.sync_global_devices("end")
try:
    Checkpoints(folder, config)
except ValueError:
    print("fine")
"""


def test_two_processes_write_one_checkpoint(tmp_path):
    (tmp_path / "7").mkdir()  # half copied, set aside by process 0 before process 1 looks
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path), port]
    processes = [
        subprocess.Popen(
            [*command, str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    try:
        results = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (stdout, stderr) in zip(processes, results, strict=True):
        assert process.returncode == 0, stderr
        assert stdout.splitlines()[-1] == "fine"
    assert saved_steps(tmp_path) == [10, 30]

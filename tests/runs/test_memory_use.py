from __future__ import annotations

from pathlib import Path

import pytest

from bitttt_jax.runs.memory_use import MemoryUse, host_memory, oom_kills, process_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("used", "stalled", "level"),
    [(84, 0.0, "low"), (86, 0.0, "high"), (96, 0.0, "full"), (10, 0.2, "full")],
)
def test_levels(used: int, stalled: float, level: str):
    use = MemoryUse(used, 100, stalled)
    assert use.level == level and str(use).endswith(f"pressure {level}")


def test_a_containers_limit_counts(tmp_path: Path):
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB - 10}\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 90\n")
    (tmp_path / "stalls").write_text("some avg10=25.00 avg60=0.00 avg300=0.00 total=1\n")
    use = host_memory(tmp_path, tmp_path / "stalls")
    assert (use.used, use.total, use.stalled) == (GIB - 100, GIB, 0.25)
    (tmp_path / "memory.max").write_text("max\n")
    machine = host_memory(tmp_path, tmp_path / "no stalls")
    assert machine.total > GIB and machine.stalled == 0 and machine.used >= process_memory() > 0


@pytest.mark.parametrize(
    ("own", "counter", "text", "kills"),
    [
        ("0::/a/b\n", "a/b/memory.events", "oom 7\noom_kill 3\noom_group_kill 0\n", 3),
        ("0::/of/the/host\n", "memory.events", "oom_kill 2\n", 2),  # seen from inside
        ("4:memory:/a\n0::/\n", "memory/a/memory.oom_control", "under_oom 0\noom_kill 5\n", 5),
        ("4:memory:/x\n", "memory/memory.oom_control", "oom_kill 1\n", 1),
        ("", "nothing", "", 9),
    ],
)
def test_kills_for_want_of_memory(tmp_path: Path, own: str, counter: str, text: str, kills: int):
    (tmp_path / "own").write_text(own)
    (tmp_path / "machine").write_text("pgfault 1\noom_kill 9\n")
    path = tmp_path / "cgroup" / counter
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert oom_kills(tmp_path / "cgroup", tmp_path / "own", tmp_path / "machine") == kills
    assert oom_kills(tmp_path, tmp_path / "none", tmp_path / "none") == 0

from __future__ import annotations

from pathlib import Path

import pytest

from bitttt_jax.runs.memory_use import MemoryUse, host_memory, process_memory

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

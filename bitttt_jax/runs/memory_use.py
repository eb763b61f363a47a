"""Memory of the host: what is in use, what may be used, and how close that is to too much."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

import psutil

from bitttt_jax.runs.console_memory import FULL, HIGH
from bitttt_jax.runs.console_text import format_memory

Level = Literal["low", "high", "full"]

_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_EVENTS = Path("/proc/vmstat")
_STALLS = Path("/proc/pressure/memory")
_STALLED = 0.1  # of the time: what has been paged out is being waited for


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """Of the whole machine, or of the container that this process is in."""

    used: int
    """Bytes that couldn't be given to somebody else."""
    total: int
    """Bytes that may be used."""
    stalled: float = 0.0
    """Share of the last ten seconds in which some process waited for memory; Linux only."""

    @property
    def level(self) -> Level:
        """How close that is to too much."""
        share = self.used / self.total
        if share > FULL or self.stalled > _STALLED:
            return "full"
        return "high" if share > HIGH else "low"

    def __str__(self) -> str:
        share = f"{self.used / self.total:.0%} of {format_memory(self.total)} in use"
        return f"{share}, pressure {self.level}"


def host_memory(cgroup: Path = _CGROUP, stalls: Path = _STALLS) -> MemoryUse:
    """What the host has, or a container's limit, whichever is closer to its end.

    Args:
      cgroup: where the system shows a container's limits (version 2).
      stalls: where it shows how long processes waited.
    """
    memory = psutil.virtual_memory()
    stalled = _stalled(stalls)
    uses = [MemoryUse(memory.total - memory.available, memory.total, stalled)]
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
        stat = (cgroup / "memory.stat").read_text()
        files = re.search(r"^inactive_file (\d+)$", stat, re.MULTILINE)  # could be dropped
        uses.append(MemoryUse(used - int(files[1] if files else 0), limit, stalled))
    except (OSError, ValueError):
        pass
    return max(uses, key=lambda use: use.used / use.total)


def process_memory() -> int:
    """Bytes of this process that are in memory now."""
    return int(psutil.Process().memory_info().rss)


def oom_kills(cgroup: Path = _CGROUP, own: Path = _OWN_CGROUP, machine: Path = _EVENTS) -> int:
    """Processes that the kernel has killed for want of memory in this container, or machine.

    Args:
      cgroup: where the system shows containers' counters (version 1 or 2).
      own: where it says which container this process is in.
      machine: where it shows the machine's.

    Returns:
      Their number so far; 0 where nobody counts them.
    """
    for path in [*_oom_counters(cgroup, own), machine]:
        try:
            found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _oom_counters(cgroup: Path, own: Path) -> list[Path]:
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    groups = {controllers: path.lstrip("/") for _, controllers, path in lines}
    # Inside a container the path may be one of the host, and the container's group is the root.
    unified = [cgroup / groups.get("", ""), cgroup]
    divided = [cgroup / "memory" / groups.get("memory", ""), cgroup / "memory"]
    return [
        *(folder / "memory.events" for folder in unified),
        *(folder / "memory.oom_control" for folder in divided),
    ]


def _stalled(path: Path) -> float:
    try:
        found = re.search(r"^some avg10=([\d.]+)", path.read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return float(found[1]) / 100 if found else 0.0

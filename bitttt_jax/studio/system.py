"""This computer's state: processors, memory, disk and GPUs, as real readings."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from bitttt_jax.runs.memory_use import host_memory

_LEVELS = {"low": "ok", "high": "high", "full": "full"}


class System:
    """Reads the system; a reading counts for a second, however many ask for it.

    Args:
      folder: on the disk whose room counts.
    """

    def __init__(self, folder: Path):
        self._folder, self._gpus = folder, Gpus()
        self._lock = threading.Lock()
        self._reading: dict[str, Any] = {}
        self._read = -1.0
        psutil.cpu_percent(percpu=True)  # the next call tells the use since this one

    def reading(self) -> dict[str, Any]:
        """The state as JSON values."""
        with self._lock:
            if time.monotonic() - self._read > 1:
                self._reading, self._read = self._look(), time.monotonic()
            return self._reading

    def _look(self) -> dict[str, Any]:
        memory, swap = host_memory(), psutil.swap_memory()
        disk = psutil.disk_usage(str(self._folder))
        return {
            "time": time.time(),
            "cpu_percent": psutil.cpu_percent(percpu=True),
            "memory": {"used": memory.used, "total": memory.total},
            "swap": {"used": swap.used, "total": swap.total},
            "disk": {"free": disk.free, "total": disk.total},
            "gpus": self._gpus.readings(),
            "pressure": _LEVELS[memory.level],
        }


class Gpus:
    """NVIDIA's GPUs as their driver sees them; none where there is no driver."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] | None = None

    def readings(self) -> list[dict[str, Any]]:
        """A dict a GPU; what a GPU doesn't tell is None."""
        if self._handles is None:
            self._handles = self._open()
        return [self._look(index, handle) for index, handle in enumerate(self._handles)]

    def _open(self) -> list[Any]:
        try:
            import pynvml
        except ImportError:
            return []
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except pynvml.NVMLError:  # the usual case: no NVIDIA driver
            return []
        self._nvml = pynvml
        return handles

    def _look(self, index: int, handle: Any) -> dict[str, Any]:
        nvml = self._nvml

        def ask(question: Any) -> Any:
            with contextlib.suppress(nvml.NVMLError):
                return question()
            return None

        name = ask(lambda: nvml.nvmlDeviceGetName(handle))
        memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        power = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        sensor = nvml.NVML_TEMPERATURE_GPU
        return {
            "index": index,
            "name": name.decode() if isinstance(name, bytes) else name,
            "used": memory and memory.used,
            "total": memory and memory.total,
            "utilisation": ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "temperature": ask(lambda: nvml.nvmlDeviceGetTemperature(handle, sensor)),
            "power": None if power is None else power / 1000,
        }

"""What the studio is and has: versions, folders, room, extras, presets."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import Any

import psutil
from starlette.requests import Request
from starlette.routing import BaseRoute

import bitttt_jax
from bitttt_jax.config_loading import preset_names
from bitttt_jax.studio.app import Studio
from bitttt_jax.studio.routing import get

_EXTRAS = {"tensorboard": "tensorboard", "hf": "datasets"}


def routes(studio: Studio) -> list[BaseRoute]:
    """GET info."""

    def info(request: Request) -> dict[str, Any]:
        return {
            "version": bitttt_jax.__version__,
            "runs_root": str(studio.runs.absolute()),
            "data_roots": [str(folder.absolute()) for folder in studio.data_roots],
            "cpu_count": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "disk_free_bytes": psutil.disk_usage(str(studio.runs)).free,
            "hostname": socket.gethostname(),
            "extras": {name: bool(importlib.util.find_spec(m)) for name, m in _EXTRAS.items()},
            "presets": preset_names(),
            "max_upload": studio.max_upload,
        }

    return [get("/info", info)]

"""What the console tests have in common."""

import runpy
import types
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def script():
    """The names of console_script.py."""
    return types.SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "console_script.py")))

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.server.live import DEADLINE_S, Live, running


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """A server with all its endpoints, that all tests may ask."""
    with running(playground=True) as found:
        yield found


@pytest.fixture(scope="session")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="none", timeout=DEADLINE_S, max_retries=0
    ) as found:
        yield found

"""Files that a fuzzer found, and mutations of whole ones: all are read or refused, none fails."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.interop.fuzz_gguf import read
from tests.interop.gguf_files import ternary, weights, write_i2_s_model, write_model

CORPUS = sorted((Path(__file__).parent / "corpus" / "gguf").iterdir())
MUTATIONS = 150


@pytest.mark.parametrize("found", CORPUS, ids=lambda path: path.stem)
def test_what_the_fuzzer_found(found: Path, tmp_path: Path):
    read(found.read_bytes(), tmp_path / "a.gguf")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same with a few bytes, a length or the end changed, most often in the header."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(changed), 1 << rng.randint(3, 15)))
        match rng.randrange(4):
            case 0:
                changed[place] = rng.randrange(256)
            case 1:
                changed[place : place + 8] = rng.getrandbits(64).to_bytes(8, "little")
            case 2:
                del changed[place : place + rng.randint(1, 16)]
            case _:
                del changed[-rng.randint(1, 64) :]
    return bytes(changed)


@pytest.mark.parametrize("kind", ["floats", "i2_s"])
def test_mutations(kind: str, tmp_path: Path):
    path, rng = tmp_path / "a.gguf", random.Random(0)
    if kind == "floats":
        write_model(path, "llama", weights("llama", blocks=1))
    else:
        values = ternary(weights("bitnet", dim=128, hidden=128, blocks=1))
        write_i2_s_model(path, "bitnet", values)
    whole = path.read_bytes()
    assert read(whole, path) is None
    refused = [read(mutated(whole, rng), path) for _ in range(MUTATIONS)]
    assert sum(error is not None for error in refused) > MUTATIONS // 2

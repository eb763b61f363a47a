from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest

from bitttt_jax.config import DataConfig, SourceConfig, TokenizerConfig
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import TokenDataset, load_tokenizer
from bitttt_jax.inference import compressors
from bitttt_jax.inference.compressors import compressed_sizes, decoded_documents


def test_sizes_are_those_of_the_programs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compressors, "_BLOCK_BYTES", 1000)
    rng = np.random.default_rng(0)
    documents = [rng.choice(list(b"abcdef"), size).astype("u1").tobytes() for size in (1, 2500, 0)]
    text, done = b"".join(documents), list[int]()
    assert compressed_sizes(documents, done.append) == (
        len(text),
        {
            "gzip -9": len(gzip.compress(text, 9)),
            "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
        },
    )
    assert done == [1, 1001, 2001, 2501]


@pytest.mark.parametrize(
    "tokenizer", [TokenizerConfig(), TokenizerConfig(kind="bpe", vocab_size=300)], ids=str
)
def test_documents_come_back_as_they_were(tmp_path: Path, tokenizer: TokenizerConfig):
    texts = [f"{n}: naïve 日本語  🎉\r\n\t<|endoftext|> {'x' * n}" for n in range(9)]
    sources = []
    for name, part in (("a", texts[:5]), ("b", texts[5:])):
        (tmp_path / name).mkdir()
        sources.append(SourceConfig(path=str(tmp_path / name)))
        for n, text in enumerate(part):
            (tmp_path / name / f"{n}.txt").write_bytes(text.encode())
    config = DataConfig(tuple(sources), tokenizer, validation_fraction=0.0)
    prepare(config, tmp_path / "tokens")
    dataset = TokenDataset.open(tmp_path / "tokens", "train")
    documents = list(decoded_documents(dataset, load_tokenizer(tmp_path / "tokens")))
    assert documents == [text.encode() for text in texts]
    assert dataset.text_bytes == sum(map(len, documents))

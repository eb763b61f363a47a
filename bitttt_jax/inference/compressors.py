"""What general compressors make of a prepared text: the yardstick for bits per byte."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bitttt_jax.data.shards import TokenDataset
from bitttt_jax.data.tokenizers import Tokenizer

# Compressors can't be interrupted within a block.
_BLOCK_BYTES = 1 << 20


def decoded_documents(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The documents of a split in their order, as UTF-8."""
    bos_id = dataset.manifest.bos_id
    for source in dataset.sources:
        for shard in source.shards:
            for start, end in zip(shard.offsets, shard.offsets[1:], strict=False):
                tokens_T = shard.tokens[int(start) : int(end)]
                if tokens_T[0] == bos_id:  # text has none of its own
                    tokens_T = tokens_T[1:]
                yield tokenizer.decode(tokens_T).encode()


def compressed_sizes(
    documents: Iterable[bytes], progress: Callable[[int], None] = lambda done: None
) -> tuple[int, dict[str, int]]:
    """Compresses documents as one text.

    Args:
      documents: the parts of the text.
      progress: told the number of bytes read.

    Returns:
      Bytes of the text, and of what `gzip -9` and `xz -9e` make of it.
    """
    compressors: dict[str, Any] = {
        "gzip -9": zlib.compressobj(9, wbits=31),  # 31 asks for gzip's own header and trailer
        "xz -9e": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
    }
    text_bytes, sizes = 0, dict.fromkeys(compressors, 0)
    for document in documents:
        for start in range(0, len(document), _BLOCK_BYTES):
            block = document[start : start + _BLOCK_BYTES]
            text_bytes += len(block)
            for name, compressor in compressors.items():
                sizes[name] += len(compressor.compress(block))
            progress(text_bytes)
    for name, compressor in compressors.items():
        sizes[name] += len(compressor.flush())
    return text_bytes, sizes

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitttt_jax.config import DataConfig, ModelConfig, SourceConfig, TrainConfig, TTTConfig
from bitttt_jax.data.batches import Batches
from bitttt_jax.data.prepare import prepare
from bitttt_jax.models import transformer
from bitttt_jax.training.evaluate import EvalSums, eval_step, evaluate, measure, summarize
from bitttt_jax.training.step import loss_sums
from tests.data.chats import make_chats, tokens_by_hand, write_chats

MODEL = ModelConfig(
    vocab_size=320,
    dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    mixers=("ttt_linear", "attention"),
    init_std=0.2,
    compute_dtype="float32",
    ttt=TTTConfig(mini_batch=4),
)


def make_texts() -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abc é\n"), size)) for size in (50, 3, 25, 1, 30, 17)]


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: transformer.init_params(MODEL, jax.random.key(0)))()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for n, text in enumerate(make_texts()):
        (folder / f"{n:02}.txt").write_text(text, encoding="utf-8")
    source = SourceConfig(path=str(folder))
    prepare(DataConfig((source,), validation_fraction=0.0), folder / "tokens")
    return folder / "tokens"


def make_config(**data: int) -> TrainConfig:
    return TrainConfig(model=MODEL, data=DataConfig(**data))


def open_rows(config: TrainConfig, folder: Path) -> Batches:
    data = config.data
    return Batches(
        folder, "train", seq_len=data.seq_len, batch_size=data.batch_size, seed=0, align=4
    )


def random_sums(seed: int, rows: int, buckets: int = 1) -> EvalSums:
    """Rows with different numbers of tokens, and means that lie apart."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 200, (rows, buckets)).astype(np.float32)
    means = rng.normal(3, 0.7, (rows, 1))
    return EvalSums((tokens * (means + rng.normal(0, 0.1, tokens.shape))).astype("f4"), tokens)


def test_the_loss_of_documents_read_one_by_one(tokens: Path, params):
    """In rows that are longer than every document, packing leaves the losses as they are."""
    length = 64
    read = jax.jit(
        lambda token_BT: transformer.logits(
            MODEL, params, transformer.read(MODEL, params, token_BT)
        )
    )
    nats, count = 0.0, 0
    for text in make_texts():
        ids = [256, *text.encode(), 256]
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids) - 1] = ids[:-1]
        logits_TV = np.asarray(read(padded)[0], np.float64)
        normalizer_T = np.log(np.exp(logits_TV).sum(-1))
        nats += sum(normalizer_T[t] - logits_TV[t, target] for t, target in enumerate(ids[1:]))
        count += len(ids) - 1
    config = make_config(seq_len=256, batch_size=2)
    splits = [open_rows(config, tokens)]
    found = measure(config, params, splits)
    text_bytes = sum(len(text.encode()) for text in make_texts())
    assert found.tokens == count == splits[0].num_tokens
    assert found.text_bytes == pytest.approx(text_bytes, rel=1e-12)
    assert found.loss == pytest.approx(nats / count, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


def test_the_number_of_rows_and_devices_has_no_effect(tokens: Path, params):
    """3 rows go to one device, 8 to eight; the last batch of each is filled up with padding."""
    results, done = [], []
    for batch_size in (3, 8):
        config = make_config(seq_len=32, batch_size=batch_size)
        splits = [open_rows(config, tokens)] * 2  # two splits count as one
        results.append(measure(config, params, splits, lambda *steps: done.append(steps)))
    assert results[0].tokens == results[1].tokens == 2 * splits[0].num_tokens
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[0].standard_error == pytest.approx(results[1].standard_error, rel=1e-4)
    total = splits[0].num_validation_batches * 2
    assert done[-total:] == [(n, total) for n in range(1, total + 1)]


def test_sums_by_row_and_position(tokens: Path, params):
    config = make_config(seq_len=64, batch_size=4)
    batch = {name: jnp.asarray(rows) for name, rows in open_rows(config, tokens).batch(0).items()}
    found = jax.jit(lambda batch: eval_step(config, params, batch))(batch)
    losses_BT, _, mask_BT = jax.jit(lambda batch: loss_sums(config, params, batch))(batch)
    expected_loss, expected_tokens = np.zeros((4, 3)), np.zeros((4, 3))
    for row, place in np.ndindex(4, 64):
        position = int(batch["positions_BT"][row, place])
        bucket = 0 if position < 16 else 1 if position < 32 else 2
        expected_loss[row, bucket] += losses_BT[row, place]
        expected_tokens[row, bucket] += mask_BT[row, place]
    np.testing.assert_array_equal(found.tokens_BP, expected_tokens)
    np.testing.assert_allclose(found.loss_BP, expected_loss, rtol=1e-5)
    result = summarize([found], 1.0)
    for bucket, start in enumerate((0, 16, 32)):
        mean = result.by_position[start]
        assert mean.tokens == expected_tokens[:, bucket].sum()
        expected = expected_loss[:, bucket].sum() / expected_tokens[:, bucket].sum()
        assert mean.loss == pytest.approx(expected, rel=1e-5)


def test_standard_errors_are_those_of_the_bootstrap():
    sums, rng = random_sums(0, rows=300, buckets=2), np.random.default_rng(1)
    rows = rng.integers(0, 300, (4000, 300))
    loss, tokens = sums.loss_BP[rows], sums.tokens_BP[rows]
    result = summarize([sums], 0.5)
    spread = np.std(loss.sum((1, 2)) / tokens.sum((1, 2)))
    assert result.standard_error == pytest.approx(spread, rel=0.06)
    for bucket, start in enumerate((0, 16)):
        spread = np.std(loss[:, :, bucket].sum(1) / tokens[:, :, bucket].sum(1))
        assert result.by_position[start].standard_error == pytest.approx(spread, rel=0.06)
    spread = np.std(np.exp(loss.sum((1, 2)) / tokens.sum((1, 2))))
    assert result.perplexity_error == pytest.approx(spread, rel=0.06)
    ratio = result.bits_per_byte_error / result.standard_error
    assert ratio == pytest.approx(result.bits_per_byte / result.loss) == 2 / math.log(2)


def test_rows_of_padding_and_empty_buckets_count_for_nothing():
    sums = random_sums(0, rows=20, buckets=3)
    sums.loss_BP[:, 1], sums.tokens_BP[:, 1] = 0, 0
    padding = EvalSums(np.zeros((5, 3), "f4"), np.zeros((5, 3), "f4"))
    assert summarize([sums, padding], 1.0) == summarize([sums], 1.0)
    assert list(summarize([sums], 1.0).by_position) == [0, 32]


def test_a_single_row_has_no_known_error():
    result = summarize([random_sums(0, rows=1)], 1.0)
    assert math.isfinite(result.loss)
    assert math.isnan(result.standard_error)
    assert math.isnan(result.bits_per_byte_error)


def test_a_diverged_model():
    sums = random_sums(0, rows=3)
    sums.loss_BP[1] = np.inf
    result = summarize([sums], 1.0)
    assert result.loss == result.perplexity == result.bits_per_byte == math.inf
    assert summarize([random_sums(0, rows=3)], 1.0)._replace(loss=800.0).perplexity == math.inf


def test_one_batch_is_under_way_while_another_is_fetched():
    log: list[str] = []

    def batches() -> Iterator[int]:
        yield from range(3)

    def step(batch: int) -> EvalSums:
        log.append(f"start {batch}")
        return random_sums(batch, rows=4)

    result = evaluate(step, batches(), 2.0, lambda done: log.append(f"done {done}"))
    assert log == ["start 0", "start 1", "done 1", "start 2", "done 2", "done 3"]
    assert result == summarize([random_sums(batch, rows=4) for batch in range(3)], 2.0)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    source = SourceConfig(path=str(write_chats(folder / "chats.jsonl", CHATS)))
    prepare(DataConfig((source,), validation_fraction=0.0), folder / "tokens")
    return folder / "tokens"


CHATS = make_chats(7)


def test_the_loss_of_replies_is_that_of_conversations_read_one_by_one(chats: Path, params):
    """Of each reply's bytes and its end, and nothing else; per byte of the replies."""
    read = jax.jit(
        lambda token_BT: transformer.logits(
            MODEL, params, transformer.read(MODEL, params, token_BT)
        )
    )
    nats, count, text_bytes = 0.0, 0, 0
    for messages in CHATS:
        ids, mask = tokens_by_hand(messages)
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(ids)] = ids
        logits_TV = np.asarray(read(padded)[0], np.float64)
        normalizer_T = np.log(np.exp(logits_TV).sum(-1))
        for place in np.flatnonzero(mask):
            nats += normalizer_T[place] - logits_TV[place, ids[place + 1]]
            count += 1
        text_bytes += sum(len(m["content"].encode()) for m in messages if m["role"] == "assistant")
    config = make_config(seq_len=4096, batch_size=2)
    splits = [open_rows(config, chats)]
    found = measure(config, params, splits)
    assert found.tokens == count == splits[0].num_predictions < splits[0].num_tokens
    assert found.text_bytes == pytest.approx(text_bytes, rel=1e-12)
    assert found.loss == pytest.approx(nats / count, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert sum(mean.tokens for mean in found.by_position.values()) == count


def test_text_and_conversations_count_together(tokens: Path, chats: Path, params):
    config = make_config(seq_len=32, batch_size=3)
    text, replies = (open_rows(config, folder) for folder in (tokens, chats))
    one, other, both = (measure(config, params, s) for s in ([text], [replies], [text, replies]))
    assert both.tokens == one.tokens + other.tokens
    assert both.text_bytes == pytest.approx(one.text_bytes + other.text_bytes)
    nats = one.loss * one.tokens + other.loss * other.tokens
    assert both.loss == pytest.approx(nats / both.tokens, rel=1e-6)


def test_rows_of_which_nothing_counts():
    nothing = EvalSums(np.zeros((2, 1), "f4"), np.zeros((2, 1), "f4"))
    found = summarize([nothing], 3.0)
    assert found.tokens == 0 and math.isnan(found.loss) and math.isnan(found.bits_per_byte)
    some = summarize([nothing, random_sums(0, 4)], 3.0)
    assert some == summarize([random_sums(0, 4)], 3.0)

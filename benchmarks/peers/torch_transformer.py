"""The same float transformer in PyTorch: forward, backward and AdamW, eager, fused attention.

Measured by `python -m benchmarks.train_step` where torch is installed. It has it a bit easier
than ours: one document a row, so that no mask of documents is needed, and no gradient clipping.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import measure
from benchmarks.train_cases import Case, Size


class Block(nn.Module):
    """Attention with RoPE, and a gated MLP, each after an RMSNorm."""

    def __init__(self, size: Size):
        super().__init__()
        D, F_ = size.dim, size.mlp_dim
        self.heads = size.num_heads
        self.norms = nn.ModuleList(nn.RMSNorm(D, eps=1e-5) for _ in range(2))
        self.qkv, self.output = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.gate_up, self.down = nn.Linear(D, 2 * F_, bias=False), nn.Linear(F_, D, bias=False)

    def forward(self, x, cos_TK, sin_TK):
        B, T, D = x.shape
        heads = self.qkv(self.norms[0](x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (_rotate(part, cos_TK, sin_TK) for part in heads[:2])
        mixed = F.scaled_dot_product_attention(q, k, heads[2], is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def _rotate(x, cos_TK, sin_TK):
    first, second = x.chunk(2, dim=-1)
    return (x * cos_TK + torch.cat([-second, first], -1) * sin_TK).to(x.dtype)


class Transformer(nn.Module):
    """Embedding, blocks, norm, and the embedding as output head."""

    def __init__(self, size: Size):
        super().__init__()
        self.embed = nn.Embedding(size.vocab_size, size.dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.num_layers))
        self.norm, self.width = nn.RMSNorm(size.dim, eps=1e-5), size.dim // size.num_heads

    def forward(self, tokens_BT, targets_BT):
        rate = 10_000.0 ** (-torch.arange(0, self.width, 2) / self.width)
        angle_TK = torch.arange(tokens_BT.shape[1])[:, None] * torch.cat([rate, rate])
        cos_TK, sin_TK = angle_TK.cos(), angle_TK.sin()
        x = self.embed(tokens_BT)
        for block in self.blocks:
            x = block(x, cos_TK, sin_TK)
        logits = F.linear(self.norm(x), self.embed.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets_BT.flatten())


def measure_torch(case: Case, size: Size, seconds: float, at_least: int) -> dict[str, Any]:
    """Times training steps of the transformer on the CPU."""
    from benchmarks.train_case import time_steps

    torch.manual_seed(0)
    model = Transformer(size)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(size.vocab_size, (case.batch, case.seq_len + 1))
    is_mixed = case.dtype == "bfloat16"
    rss = measure.peak_rss_mib()

    def step(_: int) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()

    steps = time_steps(step, lambda _: None, seconds, at_least)
    return {
        "step_s": [measure.rounded(step) for step in steps],
        "positions": case.batch * case.seq_len,
        "tokens": float(case.batch * case.seq_len),
        "threads": torch.get_num_threads(),
        "versions": measure.versions(["torch", "numpy"]),
        "peak_rss_before_steps_mib": rss,
        "peak_rss_mib": measure.peak_rss_mib(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }

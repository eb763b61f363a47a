"""From text to batches: sources -> tokenizer -> shards of tokens on disk -> packed rows.

`prepare` writes a folder of token shards once; `Batches` reads rows of it as a pure function of
(seed, step). The modules know no model, and import neither `runs` nor `distributed`.
"""

"""The patterns by which byte-level vocabularies cut text before merging, by llama.cpp's names.

Each is a list of regular expressions for the `tokenizers` library, applied one after another: a
match becomes a piece of its own, and so does what lies between two. Those of Hugging Face's files
are taken where llama.cpp rewrote them for its own engine.
"""

from __future__ import annotations

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"\p{P}\$\+<=>\^~\|"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _words(numbers: str, letters: str = r"\p{L}", symbols: str = r"\p{L}\p{N}") -> str:
    """The pattern that GPT-4's made common, by how many digits stay together."""
    return (
        rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{numbers}| ?[^\s{symbols}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


LLAMA3 = _words(r"\p{N}{1,3}")

# As DeepSeek lists them: letters that have a case; those of Chinese, Japanese and Korean; symbols.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK = "\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff"
_SYMBOLS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"

PATTERNS: dict[str, tuple[str, ...]] = {
    "default": (rf"[{_PUNCTUATION}]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "llama-bpe": (LLAMA3,),
    "qwen2": (_words(r"\p{N}"),),
    "qwen35": (_words(r"\p{N}", r"[\p{L}\p{M}]", r"\p{L}\p{M}\p{N}"),),
    "smollm": (r"\p{N}", _GPT2),
    "falcon": (rf"[{_PUNCTUATION}`]+", _GPT2, "[0-9][0-9][0-9]"),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?[{_CASED}]+",
        rf"\s?[{_SYMBOLS}]+",
        r"\s+$",
        rf"[{_CJK}]+",
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"[{_CJK}]+", r"\p{N}"),
}
"""By the names in `tokenizer.ggml.pre`; `ALIASES` has more."""

ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe",
    "lfm2": "llama-bpe",
    "phi-2": "gpt-2",
    "mpt": "gpt-2",
    "olmo": "gpt-2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "deepseek-r1-qwen": "qwen2",
    "stablelm2": "qwen2",
}
"""Other names of the same patterns."""

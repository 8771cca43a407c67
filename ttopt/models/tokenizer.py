"""Tokenizers, exactly as their files have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, from its tokenizer.json if there is one.

    AutoTokenizer would take a model type's own class, which builds the tokenizer again from its vocabulary alone:
    UMT5's then lacks the bytes that stand for rare characters.
    """
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

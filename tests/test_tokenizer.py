"""Tokenizers are what their files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ttopt.models.tokenizer import load_tokenizer

TEXT = "move the ☃ and 雪 to the é pad"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """In the style of UMT5's, as Wan ships it: words, and bytes for all else, in the folder of a T5Tokenizer."""
    words = ["▁", *(f"▁{word}" for word in "move the and to pad".split())]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0), *((word, -1.0) for word in words)]
    vocabulary += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    ).save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "T5Tokenizer"}))
    return tmp_path


def test_rare_characters_survive(folder: Path) -> None:
    built_again = AutoTokenizer.from_pretrained(folder)
    assert built_again.unk_token_id in built_again(TEXT)["input_ids"], "else this test has nothing to show"
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(TEXT, padding="max_length", max_length=64)["input_ids"]
    assert tokenizer.unk_token_id not in ids and ids[-1] == tokenizer.pad_token_id == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert tokenizer.model_max_length == 64 and tokenizer.eos_token_id in ids


def test_without_tokenizer_json_the_library_finds_its_way(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    letters = {letter: number for number, letter in enumerate("abĠ")}
    (tmp_path / "vocab.json").write_text(json.dumps(letters | {"ab": 3, "<|endoftext|>": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_tokenizer(tmp_path)("ab b", add_special_tokens=False)["input_ids"] == [3, 2, 1]

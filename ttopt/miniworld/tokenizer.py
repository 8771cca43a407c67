"""The tokenizers of the world's words: "red circle" and "blue pad" are one token each."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ttopt.miniworld.look import COLOR_NAMES
from ttopt.miniworld.words import (
    CELL_NAMES,
    NOUNS,
    PROMPT_WORDS,
    PUNCTUATION,
    QUESTION_WORDS,
    REPLY_WORDS,
    TENTHS,
    phrases,
)

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>"]


def splitter(words: str) -> pre_tokenizers.PreTokenizer:
    """Cuts text into noun phrases, ``words`` (a pattern) and single other characters."""
    pattern = rf"(?:{'|'.join(COLOR_NAMES)}) (?:{'|'.join(NOUNS)})\b|{words}|\n|[^\s\w]|\d\.\d|\d"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"^[ \t]+$"), behavior="removed"),
        ]
    )


def reasoner_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Lower-casing tokenizer of the embedded UMT5 encoder; pads to at most ``length`` tokens."""
    vocabulary = ["<pad>", "</s>", "<unk>", *phrases(), *COLOR_NAMES, *NOUNS, *PROMPT_WORDS, ".", ","]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = splitter("[a-z]+")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def teacher_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of the embedded Qwen3-VL: as above with capitals and the vision and chat tokens."""
    lower = sorted({word.lower() for word in (*PROMPT_WORDS, *QUESTION_WORDS, *REPLY_WORDS, *COLOR_NAMES, *NOUNS)})
    vocabulary = [
        "<|endoftext|>", "<unk>", *SPECIALS, *phrases(), *lower, *(w.capitalize() for w in lower), *PUNCTUATION,
        *TENTHS, *CELL_NAMES,
    ]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter(r"[a-f][1-6]\b|[A-Za-z]+")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<unk>",
        extra_special_tokens=SPECIALS, model_max_length=1024,
    )  # fmt: skip

"""The words of the world and the tokenizers made of them: "red circle" and "blue pad" are one token each."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ttopt.world.look import COLOR_NAMES, SHAPE_NAMES

PROMPT_WORDS = """
after and around bring changes else everything first gap goes make move nothing onto paint past second stays that the
then through to turns visits walls
""".split()
NOUNS = (*SHAPE_NAMES, "pad")


def phrases() -> list[str]:
    """Every noun phrase of the world: 24 things and 6 pads."""
    return [f"{color} {noun}" for color in COLOR_NAMES for noun in NOUNS]


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

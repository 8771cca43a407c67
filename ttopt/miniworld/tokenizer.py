"""Word-level tokenizers of the embedded models: a noun phrase such as "red cross" is one token."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ttopt.miniworld.world import COLOUR_NAMES, GRID, SHAPE_NAMES

WORDS = """
a after all already and answer are around as at avoid be before blue bring by cell colour copy cyan does done down
during each end ends every exactly false final finished first from gap get go goes good green has how image in into
is it its keep left make maze motion move moved moves moving must nothing now of off on one only onto or other paint
past place plan process prompt purple put queries question questions reach reached red right second seen send shape
shapes should start still stay stays step stop task that the them then there they this through to touching true turn
turned turns up video visit visits wall walls was what where which while whole with without wrong yellow yes no not
null goal accept action check complete confidence estimated executed fallback fraction instruction observation progress
regen reject remaining route split state steps suggestion target verdict reason square squares triangle triangles cross
crosses pad pads do
""".split()
ASKED = ["but", "everything"]  # words of the teacher alone
PUNCTUATION = list(".,:;?!\"'{}[]()-_<>/0123456789") + ["\n"]
CELL_NAMES = [f"{column}{row}" for row in range(1, GRID + 1) for column in "abcdef"]  # by cell number
TENTHS = [f"{n / 10:.1f}" for n in range(11)]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>"]


def phrases() -> list[str]:
    """Every noun phrase of the world: 18 sprites and 6 pads."""
    return [f"{c} {s}" for c in COLOUR_NAMES for s in (*SHAPE_NAMES, "pad")]


def _splitter(words: str) -> pre_tokenizers.PreTokenizer:
    nouns = "|".join((*SHAPE_NAMES, "pad"))
    pattern = rf"(?:{'|'.join(COLOUR_NAMES)}) (?:{nouns})\b|{words}|\n|[^\s\w]|\d\.\d|\d"
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"^[ \t]+$"), behavior="removed"),
        ]
    )


def reasoner_tokenizer(length: int) -> PreTrainedTokenizerFast:
    """Lower-casing tokenizer of the embedded UMT5 encoder; pads to at most ``length`` tokens."""
    vocabulary = ["<pad>", "</s>", "<unk>", *phrases(), *sorted({w.lower() for w in WORDS}), *PUNCTUATION]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = _splitter("[a-z]+")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def teacher_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of the embedded Qwen3-VL: as above with capitals and the vision and chat tokens."""
    lower = sorted({w.lower() for w in (*WORDS, *ASKED)})
    vocabulary = [
        "<|endoftext|>", "<unk>", *SPECIALS, "user", "assistant", "seconds",
        *phrases(), *lower, *(w.capitalize() for w in lower), *PUNCTUATION, *TENTHS, *CELL_NAMES,
    ]  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = _splitter(r"[a-f][1-6]\b|[A-Za-z]+")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<unk>",
        extra_special_tokens=SPECIALS, model_max_length=1024,
    )  # fmt: skip

"""Typed replies: what is tolerated, what is asked again, and that nothing unreachable or unreadable is an answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel, Field

from ttopt.config.settings import ChatSettings
from ttopt.data.replies import parse_reply
from ttopt.errors import UserError
from ttopt.models.chat import (
    ChatError,
    LocalChat,
    Message,
    Reply,
    ask,
    fingerprint,
    make_chat,
)
from ttopt.models.load import Models
from ttopt.models.teacher import Teacher


class Opinion(BaseModel):
    good_part: float = Field(ge=0, le=1)
    verdict: Literal["accept", "reject"]
    why: str = ""


GOOD = '{"good_part": 0.5, "verdict": "reject", "why": "it stays."}'
FOUND = Opinion(good_part=0.5, verdict="reject", why="it stays.")
IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
ASKED = [Message("user", (IMAGE, "Is it good?"))]


# Reading


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"I think {{it}} is bad.\n{GOOD}\nThat is all.",
        f"<think>maybe {GOOD.replace('reject', 'accept')}</think>{GOOD}",
        f"maybe {GOOD.replace('reject', 'accept')}</think>{GOOD}",  # the chat template wrote <think>
        '{ " good _ part " : 0 . 5 , " verdict " : " reject " , " why " : " it stays . " }',
        GOOD.replace("it stays", "it\nstays"),
        f"<thinking>maybe {GOOD.replace('reject', 'accept')}</thinking>{GOOD}",
        f"[THINK]maybe {GOOD.replace('reject', 'accept')}[/THINK]{GOOD}",
        f"<|channel|>analysis<|message|>{GOOD.replace('reject', 'accept')}<|end|><|channel|>final<|message|>{GOOD}",
        f"{GOOD}<|im_end|>",
        GOOD.replace("it stays", "it<|im_end|> stays"),
        GOOD.replace("it stays", "it\\u003c|im_end|> stays"),
        GOOD.replace("}", ",}"),
        GOOD + GOOD,
    ],
)
def test_what_is_tolerated(text: str) -> None:
    assert parse_reply(text, Opinion) == FOUND


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON object"),
        ("<html><body>502 Bad Gateway</body></html>", "no JSON object"),
        (GOOD[:-1], "broken"),
        (GOOD.replace("0.5", "80"), "good_part: Input should be less than or equal to 1"),
        (GOOD.replace("reject", "perhaps"), "'accept' or 'reject'"),
        ("[" * 10 + GOOD[1:], "no JSON object|broken"),
        (GOOD + GOOD.replace("reject", "accept"), "they differ"),
        (f'{{"answer": {GOOD}}}', "verdict: Field required"),
        (GOOD.replace('"why"', '"verdict": "accept", "why"'), "verdict has two different values"),
        (f"<think>maybe {GOOD}", "no JSON object"),
        ('{"a":' * 3000, "deeply|broken"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_reply(text, Opinion)


def test_numbers_in_texts_stay() -> None:
    assert parse_reply(GOOD.replace("it stays", "from 1 2 to 3 . 4"), Opinion).why == "from 1 2 to 3. 4."


def test_half_a_character_can_be_stored() -> None:
    assert parse_reply(GOOD.replace("it stays.", "\\ud83d"), Opinion).why.encode() == b"?"


class Says:
    name = "a parrot"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.heard: list[list[Message]] = []

    def reply(self, messages: Any, schema: type[BaseModel] | None = None) -> Reply:
        self.heard.append(list(messages))
        return Reply(self.texts.pop(0), 0.0, 1, 1, 0.0, self.name)


def test_one_more_chance_with_the_error_shown() -> None:
    chat, replies = Says(GOOD.replace("0.5", "50"), GOOD), []
    assert ask(chat, ASKED, Opinion, replies.append) == FOUND
    assert len(replies) == 2
    (first, bad, repair) = chat.heard[1]
    assert first == ASKED[0] and bad.role == "assistant" and "50" in bad.text
    assert "less than or equal to 1" in repair.text


def test_two_unreadable_replies_are_an_error() -> None:
    chat = Says("accept", "I accept!")
    with pytest.raises(
        ChatError, match="a parrot gave no usable opinion, asked twice: there is no JSON .* 'I accept!'"
    ):
        ask(chat, ASKED, Opinion)


def test_thoughts_are_not_shown_again() -> None:
    chat = Says("<think>well</think>It is fine.", GOOD)
    assert ask(chat, ASKED, Opinion) == FOUND
    assert chat.heard[1][1].text == "It is fine."


def test_leaked_control_tokens_are_not_shown_again() -> None:
    chat = Says("It is fine.<|im_end|><|im_start|>user", GOOD)
    assert ask(chat, ASKED, Opinion) == FOUND
    assert chat.heard[1][1].text == "It is fine.  user"


def test_null_is_not_given() -> None:
    assert parse_reply(GOOD.replace('"it stays."', "null"), Opinion).why == ""


def test_fingerprints() -> None:
    other = [Message("user", (IMAGE.flip(-1), "Is it good?"))]
    assert fingerprint(ASKED) == fingerprint([Message("user", (IMAGE.clone(), "Is it good?"))])
    assert len({fingerprint(ASKED), fingerprint(other), fingerprint([Message("user", ("Is it good?",))])}) == 3


# The teacher in this process


def test_teacher_sees_all_images_in_order(models: Models) -> None:
    """The prompt that reaches the model: each image's own place holders, then the text."""
    teacher, seen = models.teacher, {}

    class SpyError(Exception):
        pass

    def generate(**inputs: Any) -> Any:
        seen.update(inputs)
        raise SpyError

    original = teacher.model.generate
    teacher.model.generate = generate  # type: ignore[method-assign]
    small, large = torch.rand(3, 32, 48), torch.rand(3, 48, 48)
    try:
        with pytest.raises(SpyError):
            LocalChat(teacher).reply([Message("user", (small, large, "is the red cross whole ?"))])
    finally:
        teacher.model.generate = original  # type: ignore[method-assign]
    assert seen["image_grid_thw"].tolist() == [[1, 4, 6], [1, 6, 6]]
    assert torch.equal(
        seen["pixel_values"], torch.cat([teacher.vision.image_patches(image)[0] for image in (small, large)])
    )
    text = teacher.tokenizer.decode(seen["input_ids"][0]).replace(" ", "")
    pad = "<|image_pad|>"
    assert f"<|vision_start|>{pad * 6}<|vision_end|><|vision_start|>{pad * 9}<|vision_end|>isthe" in text
    assert int(seen["mm_token_type_ids"].sum()) == 15


def test_teacher_answers_and_counts(models: Models) -> None:
    said = LocalChat(models.teacher, max_tokens=5).reply([Message("user", (IMAGE.repeat(1, 6, 6), "is the red cross"))])
    assert said.tokens_out == 5 and said.tokens_in > 9 and said.latency > 0 and said.cut
    text = models.teacher.reply([("user", "is the red cross")], IMAGE.repeat(1, 6, 6), 5)
    assert text == said.text


def test_another_model_in_this_process(models: Models, folders: dict[str, Path]) -> None:
    asked = [Message("user", (IMAGE.repeat(1, 6, 6), "is the red cross"))]
    chat = make_chat(ChatSettings("local", str(folders["teacher"]), max_tokens=5), models.teacher)
    assert isinstance(chat, LocalChat) and chat.teacher is not models.teacher
    assert chat.reply(asked).text == LocalChat(models.teacher, max_tokens=5).reply(asked).text
    with pytest.raises(UserError, match="nowhere"):
        make_chat(ChatSettings("local", "/nowhere"), models.teacher)


def test_teacher_refuses_what_would_mislead_it(models: Models) -> None:
    chat = make_chat(ChatSettings(), models.teacher)
    assert isinstance(chat, LocalChat)
    for text in ("<|im_end|> is", "defenestrate the red cross"):
        with pytest.raises(ChatError, match="leave it out|lacks a word"):
            chat.reply([Message("user", (text,))])


def test_a_random_teacher_speaks_no_json(folders: dict[str, Path]) -> None:
    with pytest.raises(ChatError, match="asked twice"):
        ask(LocalChat(Teacher.load(folders["teacher"]), 20), [Message("user", ("is the red cross",))], Opinion)


def test_constrained_it_cannot_but_speak_json(folders: dict[str, Path]) -> None:
    pytest.importorskip("xgrammar")

    class Flags(BaseModel):
        goal: Literal["Yes", "No"]
        process: int = Field(ge=0, le=9)

    chat = LocalChat(Teacher.load(folders["teacher"]), 40, constrained=True)
    for question in ("is the red cross", "does the blue square move"):
        replies: list[Reply] = []
        found = ask(chat, [Message("user", (question,))], Flags, replies.append)
        assert found.goal in ("Yes", "No") and len(replies) == 1


def test_constrained_without_the_extra(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(UserError, match="pip install -e .*grammar"):
        make_chat(ChatSettings(constrained=True), models.teacher)

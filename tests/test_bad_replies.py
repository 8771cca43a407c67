"""Replies of a model that are wrong, one line a case."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from bad_input import FEW, JSON, one_sentence
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from tiny import tiny_sample

from loop.planner import Plan
from loop.router import Route
from loop.verifier import Verdict
from ttopt.data.queries import _Reply
from ttopt.data.replies import parse_reply
from ttopt.errors import UserError
from ttopt.models.chat import ChatError, Message, Reply, ask
from ttopt.models.load import Models

QUERIES = '{"goal": "is it there?", "process": ["is it whole?"]}'
PLAN = '{"task_complete": false, "instruction": "go", "estimated_steps_remaining": 1}'
DONE = '{"task_complete": true, "estimated_steps_remaining": 0}'
VERDICT = '{"reason": "r", "action_executed": true, "progress": 0.5, "good_fraction": 0.5, "verdict": "reject"}'
ROUTE = '{"action": "regen"}'
ANY = [  # no schema can be found in these
    ("", "there is no JSON object in it"),
    (" \n\t", "there is no JSON object in it"),
    ("\0", "there is no JSON object in it"),
    ("null", "there is no JSON object in it"),
    ("[]", "there is no JSON object in it"),
    ("Yes.", "there is no JSON object in it"),
    ("```json\n```", "there is no JSON object in it"),
    ("<html>502 Bad Gateway</html>", "there is no JSON object in it"),
    ("\ud800", "there is no JSON object in it"),
    ("{", "its JSON is broken: Expecting property name"),
    ("{}" * 40_000, "there are 20 JSON objects in it or more"),
    ("{" * 40_000, "its JSON is broken: Expecting property name"),
    ('"' * 40_000, "there is no JSON object in it"),
    ('{"a": "' + '\\"' * 40_000, "its JSON is broken: Unterminated string"),
    ('{"a": x' + '"\\"' * 40_000, "its JSON is broken: Expecting value"),
    ('{"a": "' + 'x\\"' * 40_000 + "\\", "its JSON is broken"),
    ('{"a' + " " * 40_000 + 'b": 1}', "Field required"),
    ("<think>" * 40_000, "there is no JSON object in it"),
    ("<|channel|>final" * 40_000, "there is no JSON object in it"),
    ('{"a": 1' + ", " * 40_000, "its JSON is broken"),
    ("{}", "Field required"),
    ("{'goal': 'single quotes'}", "its JSON is broken"),
    ('{"goal" "process"}', "its JSON is broken"),
    ("{" * 1000, "its JSON is broken"),
    ('{"a": ' * 20_000, "its JSON is nested too deeply"),
    ("[" * 50_000, "there is no JSON object in it"),
    ('{"a": ' + "[" * 50_000, "its JSON is nested too deeply"),
    ("x" * 100_000, "there is no JSON object in it"),
    ('{"a": "' + "x" * 100_000, "its JSON is broken: Unterminated string"),
    ('{"a": ' + "9" * 5000 + "}", "its JSON is broken: a number of 5000 digits"),
    ("<think>" + QUERIES + PLAN + VERDICT + ROUTE, "there is no JSON object in it"),
]
TYPED: list[tuple[type[BaseModel], str, str]] = [
    *((Verdict, reply, problem) for reply, problem in ANY),
    (_Reply, QUERIES[:-1], "its JSON is broken"),
    (_Reply, QUERIES + QUERIES.replace("there", "gone"), "there is more than one JSON object in it, and they differ"),
    (_Reply, '{"goal": "a?", "goal": "b?", "process": ["c?"]}', "goal has two different values"),
    (_Reply, '{"goal": "", "process": ["a?"]}', "goal: Value error, a question is empty"),
    (_Reply, '{"goal": " ", "process": ["a?"]}', "goal: Value error, a question is empty"),
    (_Reply, '{"goal": null, "process": ["a?"]}', "goal: Input should be a valid string"),
    (_Reply, '{"goal": 5, "process": ["a?"]}', "goal: Input should be a valid string"),
    (_Reply, '{"goal": ["a?"], "process": ["a?"]}', "goal: Input should be a valid string"),
    (_Reply, '{"goal": "a?"}', "process: Field required"),
    (_Reply, '{"goal": "a?", "process": []}', "process: List should have at least 1 item"),
    (_Reply, '{"goal": "a?", "process": "b?"}', "process: Input should be a valid list"),
    (_Reply, '{"goal": "a?", "process": {"1": "b?"}}', "process: Input should be a valid list"),
    (_Reply, '{"goal": "a?", "process": ["b?", 3]}', "process.1: Input should be a valid string"),
    (_Reply, '{"goal": "a?", "process": ["b?", ""]}', "process.1: Value error, a question is empty"),
    (_Reply, '{"goal": "a?", "process": ["b?", "c?", "d?", "e?"]}', "process: List should have at most 3 items"),
    (Plan, PLAN.replace("false", '"perhaps"'), "task_complete: Input should be a valid boolean"),
    (Plan, PLAN.replace("false", "null"), "task_complete: Input should be a valid boolean"),
    (Plan, PLAN.replace('"go"', '""'), "the instruction is empty although the task is not complete"),
    (Plan, PLAN.replace('"go"', '"  "'), "the instruction is empty although the task is not complete"),
    (Plan, PLAN.replace('"go"', "3"), "instruction: Input should be a valid string"),
    (Plan, PLAN.replace('"go"', '["go"]'), "instruction: Input should be a valid string"),
    (Plan, PLAN.replace(": 1}", ": -1}"), "estimated_steps_remaining: Input should be greater than or equal to 0"),
    (Plan, PLAN.replace(": 1}", ": NaN}"), "estimated_steps_remaining: Input should be a finite number"),
    (Plan, PLAN.replace(": 1}", ": 1e999}"), "estimated_steps_remaining: Input should be a finite number"),
    (Plan, PLAN.replace(": 1}", ": 1.5}"), "estimated_steps_remaining: Input should be a valid integer"),
    (Plan, PLAN.replace(": 1}", ": []}"), "estimated_steps_remaining: Input should be a valid integer"),
    (Plan, PLAN.replace("false", "true"), "task_complete is true, but 1 steps remain"),
    (Plan, "Not yet: " + DONE, "task_complete counts only without any words around the JSON object"),
    (Plan, f'{{"if it were done": {DONE}}}', "task_complete: Field required"),
    (Plan, PLAN + PLAN.replace("go", "come"), "there is more than one JSON object in it, and they differ"),
    (Verdict, VERDICT.replace('"reject"', '"maybe"'), "verdict: Input should be 'accept' or 'reject'"),
    (Verdict, VERDICT.replace('"reject"', "true"), "verdict: Input should be 'accept' or 'reject'"),
    (Verdict, VERDICT.replace('"reject"', '["accept"]'), "verdict: Input should be 'accept' or 'reject'"),
    (Verdict, VERDICT.replace('"verdict"', '"veredict"'), "verdict: Field required"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": 50'), "progress: Input should be less than or equal to"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": -1'), "progress: Input should be greater than or equal"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": NaN'), "progress: Input should be"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": Infinity'), "progress: Input should be"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": "half"'), "progress: Input should be a valid number"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": null'), "progress: Input should be a valid number"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": {}'), "progress: Input should be a valid number"),
    (Verdict, VERDICT.replace("true", "2"), "action_executed: Input should be a valid boolean"),
    (Verdict, VERDICT.replace('"r"', "null"), "reason: Input should be a valid string"),
    (Verdict, VERDICT.replace('"r"', '"r", "verdict": "accept"'), "verdict has two different values"),
    (Verdict, VERDICT + " or " + VERDICT.replace("reject", "accept"), "there is more than one JSON object in it"),
    (Route, '{"action": "retry"}', "action: Input should be 'regen', 'split' or 'fallback'"),
    (Route, '{"action": null}', "action: Input should be 'regen', 'split' or 'fallback'"),
    (Route, '{"action": "split", "estimated_steps": 0}', "estimated_steps: Input should be greater than or equal to 1"),
    (Route, '{"action": "split", "estimated_steps": "some"}', "estimated_steps: Input should be a valid integer"),
    (Route, '{"action": "regen"} {"action": "split"}', "there is more than one JSON object in it, and they differ"),
]  # fmt: skip


SURE = VERDICT.replace("reject", "accept")
NO_ACCEPT = {  # what says "accept" in a reply, and why it is none
    "nothing happened": (SURE.replace("true", "false"), "contradicts action_executed false"),
    "no progress": (SURE.replace('"progress": 0.5', '"progress": 0'), "contradicts .. progress 0 and"),
    "rounded progress": (SURE.replace('"progress": 0.5', '"progress": -0.004'), "contradicts .. progress 0 and"),
    "no good frame": (SURE.replace('"good_fraction": 0.5', '"good_fraction": 0'), "contradicts .. good_fraction 0"),
    "denied by an object": (f'{{"not": {SURE}}}', "Field required"),
    "denied by a broken object": (f'{{"not": {SURE}', "its JSON is broken"),
    "in a list": (f"[{SURE}]", "without any words around"),
    "in a sentence": (f"I would not say {SURE} of this clip.", "without any words around"),
    "before a sentence": (f"{SURE} would be wrong.", "without any words around"),
    "after a sentence": (f"Others would say: {SURE}", "without any words around"),
    "beside another object": (f'{SURE} {{"wrong": true}}', "without any words around"),
    "after a draft": (f"{SURE}<think>no, ", "there is no JSON object in it"),
    "twice": (SURE * 2, "without any words around"),
    "in two fences": (f"```json\n{SURE}\n```\n```\nno\n```", "without any words around"),
    "in thoughts": (f"<think>{SURE}</think>", "there is no JSON object in it"),
    "in another channel": (f"<|channel|>analysis<|message|>{SURE}<|end|>", "there is no JSON object in it"),
}
ACCEPTS = [
    SURE,
    f" \n{SURE}\n",
    f"```json\n{SURE}\n```",
    f"<think>Is it? {VERDICT}</think>\n{SURE}",
    f"<THINKING>{VERDICT}</THINKING>{SURE}",
    f"[THINK]{VERDICT}[/THINK]{SURE}",
    f"{SURE}<|im_end|>",
    f"<|im_start|> assistant \n{SURE}",
    f"<|start_header_id|>assistant<|end_header_id|>\n\n{SURE}<|eot_id|>",
    f"<|begin_of_box|>{SURE}<|end_of_box|>",
    f"<|channel|>analysis<|message|>{VERDICT}<|end|><|start|>assistant<|channel|>final<|message|>{SURE}<|return|>",
    f"<|channel|>final <|constrain|>json<|message|>{SURE}",
    SURE.replace('"r"', '"r", "suggestion": null, "confidence": null'),
    SURE.replace('"accept"', '"Accept",'),
]


@pytest.mark.parametrize("reply, problem", NO_ACCEPT.values(), ids=NO_ACCEPT)
def test_only_a_consistent_accept_accepts(reply: str, problem: str) -> None:
    with pytest.raises(ChatError) as error:
        ask(Parrot(reply), [Message("user", ("?",))], Verdict)
    one_sentence(str(error.value), f"a parrot gave no usable verdict, asked twice: .. {problem}")


@pytest.mark.parametrize("reply", ACCEPTS)
def test_what_accepts(reply: str) -> None:
    assert ask(Parrot(reply), [Message("user", ("?",))], Verdict).accepted


def test_an_accept_that_was_cut_off() -> None:
    class Cut(Parrot):
        def reply(self, messages: Any, schema: type[BaseModel] | None = None) -> Reply:
            return Reply(self.text, 0.0, 1, 1, 0.0, self.name, cut=True)

    with pytest.raises(ChatError, match="cut off after 1 tokens"):
        ask(Cut(SURE), [Message("user", ("?",))], Verdict)


def test_a_reject_needs_no_proof() -> None:
    reply = f"It is bad. {VERDICT.replace('true', 'false')}"
    assert not ask(Parrot(reply), [Message("user", ("?",))], Verdict).accepted


class Parrot:
    """Says the same again and again."""

    name = "a parrot"

    def __init__(self, text: str) -> None:
        self.text = text

    def reply(self, messages: Any, schema: type[BaseModel] | None = None) -> Reply:
        return Reply(self.text, 0.0, 1, 1, 0.0, self.name)


@pytest.mark.parametrize(
    "schema, reply, problem", TYPED, ids=[f"{schema.__name__} {reply[:30]!r}" for schema, reply, _ in TYPED]
)
def test_replies(schema: type[BaseModel], reply: str, problem: str) -> None:
    begin = time.process_time()
    with pytest.raises(ChatError) as error:
        ask(Parrot(reply), [Message("user", ("?",))], schema)
    assert time.process_time() - begin < 1, "however it is made"
    said = str(error.value)
    one_sentence(said, f"a parrot gave no usable {schema.__name__.lower()}, asked twice: .. {problem} .. its reply: ")
    said.encode()


@pytest.mark.parametrize("reply, problem", ANY, ids=[repr(reply[:30]) for reply, _ in ANY])
def test_questions(reply: str, problem: str, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher that optimizes, which is asked without a Chat."""
    monkeypatch.setattr(models.teacher, "reply", lambda *args, **options: reply)
    with pytest.raises(UserError) as error:
        models.teacher.write_queries(tiny_sample(prompt="move the red cross to the green pad"))
    one_sentence(
        str(error.value), f"sample a: the teacher wrote no usable questions, asked twice; .. {problem} .. Give"
    )


@FEW
@given(content=JSON, before=st.text(max_size=20), after=st.text(max_size=20))
@pytest.mark.parametrize("schema, good", [(_Reply, QUERIES), (Plan, PLAN), (Verdict, VERDICT), (Route, ROUTE)])
def test_any_reply(schema: type[BaseModel], good: str, content: Any, before: str, after: str) -> None:
    """One field holds anything, between any words: a typed reply that can be stored, or a ValueError."""
    for name in json.loads(good):
        try:
            found = parse_reply(before + json.dumps(json.loads(good) | {name: content}) + after, schema)
        except ValueError as error:
            assert str(error)
        else:
            found.model_dump_json().encode()

"""The heart: plan, generate, verify, repair, clip by clip (CollabVR, arXiv 2605.08735, section 3).

    H = [], f = I0
    for t in 1..N_max:
        a = plan(I0, q, H, f)                  one next action, or: the task is complete
        for j in 1..M:
            c = generate(f, a)                 or only its bad rest, from the last good frame
            v, d = verify(I0, q, H, c, a)      of the action, not of the whole task
            if v is accept: H += c; f = last frame of c; break
            a = evolve(a, d)
        else: route: one more try | smaller steps | the whole task in one clip
    return concat(H)

Only a verifier's "accept" accepts. A model that cannot be reached or understood ends the sample, marked as not
accepted, and the result says why. Where the last step is not accepted, the video is the best there is: H and the
rejected attempt that the verifier likes best, if it sees any progress in it. The paper's is H alone, which cannot be
the whole task.

A sample's folder holds, besides video.mp4, result.json and config.yaml:

    trace.json       every call, clip, verdict and repair, with seeds and costs
    clips/           every clip as it was judged, and the frame it was made from as a PNG
    journal/         while it is unfinished: what it goes on from if it is interrupted (loop/journal.py)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from torch import Tensor

from ttopt.data.sample import Sample
from ttopt.errors import RunError, UserError, is_out_of_memory, one_line
from ttopt.models.chat import ChatError, Message, Reply
from ttopt.models.distributed import is_distributed
from ttopt.models.load import too_small
from ttopt.optimization.context import Context
from ttopt.optimization.state import digest
from ttopt.record.result import Result
from ttopt.run.memory import can_spare

from .clips import frames_of, good_frames, join
from .generator import Generator
from .journal import Journal, RememberedChat
from .planner import plan
from .router import route
from .settings import LoopSettings
from .step import Attempt, Step
from .trace import Trace
from .verifier import Verdict, verify
from .wording import TARGET, Wording, sentence, with_suggestion

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Ending:
    """``accepted`` None: nobody judged."""

    accepted: bool | None
    stop: str
    error: str = ""


class StepLoop:
    """The step loop as a method. Raises UserError for arguments it does not know."""

    def __init__(self, **arguments: Any) -> None:
        self.settings = LoopSettings.of(arguments)

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        """Makes the sample's video step by step; see ttopt.methods.base.Method."""
        return Loop(self.settings, sample, folder, context).run()


class Loop:
    """The loop over one sample."""

    def __init__(self, settings: LoopSettings, sample: Sample, folder: Path, context: Context) -> None:
        key = digest(sample, context.settings, context.queries)
        self.journal = Journal(folder, key, context.meter, context.note)
        assert context.chat is not None, "a method that asks gets a chat model"
        chat = RememberedChat(context.chat, self.journal)
        context = dataclasses.replace(context, chat=chat)
        self.settings, self.sample, self.folder, self.context = settings, sample, folder, context
        self.wording = Wording.load(context.settings.chat.prompts)
        self.trace = Trace(
            folder,
            {"sample": sample.id, "task": sample.prompt, "loop": settings.model_dump(), "chat": chat.name},
        )
        self.steps = settings.max_steps if settings.planning else 1
        self.splits = settings.max_splits if settings.planning else 0
        self.done: tuple[str, ...] = ()  # H, as actions
        self.clips: tuple[Tensor, ...] = ()  # H, as clips
        self.frame = sample.image  # f
        self.planned_more = False  # the planner's own count, at the last step
        self.target = ""  # of the planner's last action, where the verifier's prompt asks for it
        self.failed = ""  # what the router says of a step that is planned again; told once
        self.generate = Generator(settings, sample, folder, context, self.trace, self.journal, self.warn)
        self.best: tuple[tuple[float, ...], Tensor] | None = None  # rank and video of the best there is so far

    def run(self) -> Result:
        try:
            ending = self.loop()
        except RunError:
            raise
        except Exception as error:
            full = is_out_of_memory(error)
            if not (full or isinstance(error, UserError)):
                raise
            if full and (is_distributed() or can_spare(self.context.models)):
                # The sample runner tries once more, which the journal makes cheap; several processes end together.
                raise
            why = too_small(error) if full else str(error)
            ending = Ending(False, f"stopped in step {len(self.done) + 1}: a model failed", why)
        self.trace.save(accepted=ending.accepted, stop=ending.stop, error=ending.error)
        self.generate.tidy()
        result = self.context.finish(
            self.sample,
            self.best and self.best[1],
            self.folder,
            method=self.settings.name,
            seeds=self.generate.seeds,
            accepted=ending.accepted,
            stop=ending.stop,
            error=ending.error,
            details={"steps": list(self.done), "warnings": self.trace.warnings, **self.trace.totals()},
        )
        self.trace.log(self.context.logger)
        if not ending.error:
            self.journal.remove()
        return result

    # The loop

    def loop(self) -> Ending:
        number = 1
        while number <= self.steps:
            action = self.plan(number)
            if action is None:
                return self.accept_all("the planner sees the task complete")
            step = self.begin(number, action, self.target)
            if not any(self.attempt(step) for _ in range(self.settings.attempts)):
                ordered = self.route(step)
                if ordered == "split":
                    continue  # the same step again, planned in smaller ones
                if ordered == "fallback":
                    return self.fall_back(step)
                if not self.attempt(step):
                    return Ending(False, f"step {number} was rejected {len(step.attempts)} times")
            self.accept(step)
            number += 1
        if self.planned_more and self.plan(self.steps) is not None:
            return Ending(False, f"all {self.steps} steps done, and the planner wants more; see max_steps")
        return self.accept_all(f"all {self.steps} steps done")

    def plan(self, number: int) -> str | None:
        """The next action; None: the task is complete."""
        if not self.settings.planning:
            return self.sample.prompt
        self.context.status(f"step {number}/{self.steps}: the planner thinks")
        found = plan(
            self.asker("planner", number), self.wording, self.sample.image, self.frame, self.sample.prompt, self.done,
            number, self.steps, self.failed,
        )  # fmt: skip
        self.planned_more, self.failed, self.target = found.estimated_steps_remaining > 1, "", ""
        if found.task_complete and not self.done:
            self.warn("the planner calls the task complete before anything was done; the whole task is the action")
            return self.sample.prompt
        if found.task_complete:
            return None
        action = self.limited(found.instruction)
        if TARGET in self.wording.verify:
            self.target = self.limited(found.target_state)
        self.tell(f"step {number}/{self.steps}: {action}")
        return action

    def begin(self, number: int, action: str, target: str = "") -> Step:
        lengths, frames = self.settings.clip_seconds, self.sample.frames
        if lengths is not None:
            frames = frames_of(lengths[min(number, len(lengths)) - 1], self.sample.fps)
        return Step(number, action, action, frames, self.frame, self.clips, self.done, target)

    def attempt(self, step: Step) -> bool:
        """Generate, verify; if rejected, prepare the repair. Whether the clip is accepted."""
        number = len(step.attempts) + 1
        self.context.status(f"step {step.number}/{self.steps}, attempt {number}: the reasoner generates")
        attempt = Attempt(self.generate(step))
        step.attempts.append(attempt)
        self.consider(step, attempt)
        if not self.settings.verification:
            return True
        attempt.verdict = verdict = self.verify(step, attempt.clip)
        self.consider(step, attempt)
        if verdict.accepted:
            return True
        if not verdict.suggestion:
            self.trace.warn(f"step {step.number}, attempt {len(step.attempts)}: rejected without a suggestion")
        step.diagnoses.append(verdict)
        step.prompt = self.evolve(step, verdict.suggestion)
        step.kept = self.keep(step, attempt.clip, verdict)
        return False

    def accept(self, step: Step) -> None:
        clip = step.attempts[-1].clip
        self.clips, self.done, self.frame = (*step.clips, clip), (*step.done, step.action), clip[-1]
        self.settle()

    def route(self, step: Step) -> str:
        """What to do with a step whose attempts were all rejected."""
        self.context.status(f"step {step.number}: the router decides")
        found = route(
            self.asker("router", step.number), self.wording, self.sample.image, step.start, self.sample.prompt,
            step.done, step.action, step.diagnoses[-1].reason, len(step.attempts),
        )  # fmt: skip
        ordered: str = found.action
        if ordered == "split" and not self.splits:
            self.warn("the router orders smaller steps, but that was done before or there is no planner: fallback")
            ordered = "fallback"
        if ordered == "split":
            self.splits -= 1
            self.failed = " ".join(f"{sentence(step.action)} {found.reason} {found.suggestion}".split())
            self.steps += min(max(found.estimated_steps - 1, 1), self.settings.max_steps)
        if ordered == "regen":
            step.prompt = self.evolve(step, found.suggestion)
        self.tell(f"step {step.number}: router: {ordered}. {found.reason}")
        return ordered

    def fall_back(self, failed: Step) -> Ending:
        """The whole task in one clip from the first frame."""
        whole = dataclasses.replace(self.begin(1, self.sample.prompt), start=self.sample.image, clips=(), done=())
        if self.attempt(whole):
            self.accept(whole)
            return Ending(True, f"the whole task in one clip, after step {failed.number} failed")
        tries = len(failed.attempts)
        return Ending(False, f"step {failed.number} was rejected {tries} times, and so was the whole task in one clip")

    def accept_all(self, stop: str) -> Ending:
        self.settle()  # without the rejected clip of a step that was then found to be done
        return Ending(True if self.settings.verification else None, stop)

    # Its parts

    def verify(self, step: Step, clip: Tensor) -> Verdict:
        attempt = len(step.attempts)
        self.context.status(f"step {step.number}/{self.steps}, attempt {attempt}: the verifier looks")
        verdict = verify(
            self.asker("verifier", step.number), self.wording, self.sample.image, clip, self.sample.fps,
            self.settings.frames_per_second, self.sample.prompt, step.done, step.action, step.target,
        )  # fmt: skip
        self.trace.verdict(verdict.model_dump())
        self.tell(
            f"step {step.number}/{self.steps}, attempt {attempt}: {verdict.verdict} (progress {verdict.progress:.2f}, "
            f"good {verdict.good_fraction:.2f}). {'' if verdict.accepted else verdict.suggestion or verdict.reason}"
        )
        return verdict

    def evolve(self, step: Step, suggestion: str) -> str:
        """The prompt with one more suggestion; no model is asked. Where they get too long, the older ones go."""
        longer = with_suggestion(step.prompt, suggestion)  # an empty one changes only the seed
        if longer == step.prompt or len(longer) <= self.settings.longest_prompt:
            return longer
        return sentence(step.action) + f" {self.limited(suggestion)}"

    def keep(self, step: Step, clip: Tensor, verdict: Verdict) -> Tensor | None:
        """The good prefix of a rejected clip. A later repair never gives back what an earlier one kept, unless the
        verifier now finds nothing good."""
        count = good_frames(verdict.good_fraction, len(clip), self.settings.keep_above)
        if count and step.kept is not None:
            count = max(count, len(step.kept))
        return clip[:count] if count else None

    def consider(self, step: Step, attempt: Attempt) -> None:
        """Remembers the best video so far: first by accepted steps, then by the verifier's own order."""
        rank = (-1.0,) * 3 if attempt.verdict is None else attempt.verdict.rank
        if self.best is None or (len(step.clips), *rank) > self.best[0]:
            self.best = ((len(step.clips), *rank), join([*step.clips, attempt.clip]))

    def settle(self) -> None:
        """The accepted clips are the best video, whatever was tried after them."""
        self.best = ((len(self.clips), 0.0, 0.0, 0.0), join(self.clips))

    # Talking

    def asker(self, role: str, step: int) -> Any:
        """``ask(message, schema)`` of the chat model, with every reply in the trace."""

        def ask(message: Message, schema: type[T]) -> T:
            begin = self.journal.place

            def record(reply: Reply) -> None:
                self.trace.call(role, step, [message], reply)

            try:
                return self.context.ask([message], schema, record)
            except ChatError as error:
                self.journal.forget(begin)  # the next call asks again
                self.trace.failed_call(role, step, [message], str(error))
                raise ChatError(f"the {role} failed in step {step}: {error}") from error

        return ask

    def limited(self, text: str) -> str:
        """The text, cut at a word if it is too long for the video model."""
        longest = self.settings.longest_prompt
        if len(text) <= longest:
            return text
        self.warn(f"a prompt of {len(text)} characters was cut to {longest}; see longest_prompt")
        return text[:longest].rsplit(" ", 1)[0]

    def tell(self, text: str) -> None:
        """One line that stays; a model's words are kept from moving the cursor."""
        self.context.note(f"  {self.sample.id}  {one_line(text)[:300]}")

    def warn(self, text: str) -> None:
        self.trace.warn(text)
        self.tell(f"warning: {text}")

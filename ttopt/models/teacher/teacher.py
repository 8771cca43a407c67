"""The teacher: a frozen vision-language model that writes yes/no questions about a task and grades videos with them.

VLM-as-Teacher (arXiv 2606.02564), section 3 and Algorithm 1: vqa(v, q) = -sum_l log P(a_l | v, q, a_<l),
where a is "Yes". All questions about a video share one forward (packing.py) where the model type can keep them apart
(families.py).

Shapes: B videos, K frames, Q questions each, A answer tokens, S tokens a row, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from ttopt.data.queries import Queries, QueriesError, parse_queries
from ttopt.data.sample import Sample
from ttopt.errors import UserError, naming
from ttopt.models.checkpoint import check_finite
from ttopt.models.compiling import allow_variants
from ttopt.models.distributed import from_rank_zero
from ttopt.models.hub import not_given, on_hub
from ttopt.models.teacher import prompts as words
from ttopt.models.teacher.attention import PACKED
from ttopt.models.teacher.families import FAMILIES, Family
from ttopt.models.teacher.packing import Packed, PackedOutput, Prefix, at, check_masks, pack
from ttopt.models.teacher.prompts import Prompts
from ttopt.models.teacher.vision import Grid, Vision
from ttopt.models.tokenizer import load_tokenizer

FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # of a model on the hub


class Teacher:
    """A frozen vision-language model, its tokenizer, its preprocessing and its wording.

    The constructor takes a model in memory, as training does, and leaves its mode and requires_grad alone;
    ``load`` takes one from a folder. Raises UserError for a model whose layers do not obey attention masks.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        vision: Vision | None = None,
        prompts: Prompts | None = None,
        answer: str | Sequence[str] = "Yes",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.family: Family = FAMILIES[model.config.model_type]
        self.vision = vision or self.family.vision_class.of(model.config)
        self.prompts = prompts or Prompts()
        self.activation_checkpointing = self.compiled = False
        self.others: Sequence[Teacher] = ()  # that grade too
        self.combine: Literal["mean", "worst"] = "mean"
        variants = [answer] if isinstance(answer, str) else list(answer)
        self.answer_ids = self._encode(variants[0])
        self._variant_ids = self._variants(variants)
        model.set_attn_implementation(PACKED)
        self.family.prepare(model)
        if self.family.packs:
            check_masks(model, self.family.position_ids)
        self._question_ids: dict[str, list[int]] = {}
        self._prefixes: dict[tuple[Any, ...], Prefix] = {}
        self._packed: tuple[Any, Packed] | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
        answer: str | Sequence[str] = "Yes",
        activation_checkpointing: bool = False,
    ) -> Teacher:
        """A frozen teacher from a local folder or a hub id, in transformers' layout (safetensors only).

        ``answer`` is what counts as satisfied; several of one token each add up ("Yes", "yes").
        ``activation_checkpointing`` recomputes layers in the backward pass: less memory, the same gradient.
        Raises UserError for what is missing,
        and for other model types.
        """
        check_teacher(model)
        folder = find_folder(model)
        with naming(f"teacher {model}"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            family = FAMILIES[config.model_type]
            network, report = family.model_class.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
            )
            tokenizer = load_tokenizer(folder)
        if report["missing_keys"]:
            first = min(report["missing_keys"])
            raise UserError(f"{model}: {first} is missing from the weights; fetch them again")
        network.to(device).eval().requires_grad_(False)
        check_finite(network, f"teacher {model}", folder, "model")
        teacher = cls(network, tokenizer, family.vision_class.load(folder, config), Prompts.load(folder), answer)
        teacher.set_activation_checkpointing(activation_checkpointing)
        return teacher

    @property
    def device(self) -> torch.device:
        return self.model.device

    def set_activation_checkpointing(self, on: bool) -> None:
        """Whether layers are computed again in the backward pass of what follows, instead of being kept."""
        self.activation_checkpointing = on
        if on:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.activation_checkpointing_disable()
        for other in self.others:
            other.set_activation_checkpointing(on)

    def compile(self) -> None:
        """Compiles the layers of vision tower and language model, for grading only; the first steps are slow.

        The compiled code is shared by all layers of a kind. Writing stays as it is: each token is another shape.
        Raises UserError for a model type whose layers do not compile well.
        """
        if not self.family.compiles:
            raise UserError(
                f"teacher.compile: the layers of a {self.model.config.model_type} do not compile well; leave it off"
            )
        self.compiled = True
        allow_variants()
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):  # what transformers' models repeat
                module.compile()

    def write_queries(self, sample: Sample) -> Queries:
        """The teacher's own questions about (prompt, first frame), greedily generated (Algorithm 1, line 1).

        A reply that cannot be read is shown to the teacher once, with the error; then it is a QueriesError.
        """
        if not self.family.writes:
            raise UserError(
                f"a {self.model.config.model_type} teacher grades videos but cannot write the questions; give "
                "--sample.queries.goal and --sample.queries.process"
            )
        self.refuse_special_tokens(sample.prompt)
        chat = [("user", self.prompts.queries.format(prompt=sample.prompt))]
        self._encode(chat[0][1])  # unknown words: better an error than questions about something else
        reply = self.reply(chat, sample.image)
        try:
            return parse_queries(reply)
        except ValueError as error:
            chat += [("assistant", reply), ("user", words.REPAIR.format(error=error))]
        second = self.reply(chat, sample.image)
        try:
            return parse_queries(second)
        except ValueError as error:
            raise QueriesError(
                f"sample {sample.id}: the teacher wrote no usable questions, asked twice; {error}. "
                f"Its reply: {second[:300]!r}. Give the questions yourself, or use a larger teacher"
            ) from error

    def queries(self, sample: Sample) -> Queries:
        """``write_queries``, or generic questions where what the teacher writes cannot be read.

        Raises UserError as write_queries, QueriesError only where a word-level vocabulary lacks the generic words.
        """
        try:
            return self.write_queries(sample)
        except QueriesError as error:
            found = Queries(words.GENERIC_GOAL.format(prompt=sample.prompt), words.GENERIC_PROCESS, generic=True)
            try:
                self.check_words(" ".join(found.all))
            except UserError:
                raise error from None
            return found

    def reply(
        self, chat: Sequence[tuple[str, str]], images: Tensor | Sequence[Tensor] | None, max_new_tokens: int = 512
    ) -> str:
        """Greedy answer to a chat of (role, text) messages; ``images``, each (3,H,W) in [0,1], open the first."""
        return self.reply_counted(chat, images, max_new_tokens)[0]

    def reply_counted(
        self,
        chat: Sequence[tuple[str, str]],
        images: Tensor | Sequence[Tensor] | None,
        max_new_tokens: int = 512,
        constraint: Any = None,
    ) -> tuple[str, int, int]:
        """As ``reply``, with the numbers of tokens that were read and written; ``constraint``, a logits processor of
        transformers, limits what can be written."""
        return from_rank_zero(lambda: self._reply(chat, images, max_new_tokens, constraint))

    @torch.no_grad()
    def _reply(
        self,
        chat: Sequence[tuple[str, str]],
        images: Tensor | Sequence[Tensor] | None,
        max_new_tokens: int,
        constraint: Any,
    ) -> tuple[str, int, int]:
        shown = [] if images is None else [images] if isinstance(images, Tensor) else list(images)
        patches = [self.vision.image_patches(image.to(self.device, torch.float32)) for image in shown]
        merged = [self.vision.frame_token_count(grid) for _, grid in patches]
        # The slots are filled one by one: a text that holds one was refused before.
        pieces = words.chat_text(self.tokenizer, chat, words.IMAGE_SLOT if shown else "", len(shown)).split(
            words.IMAGE_PAD
        )
        text = "".join(piece + words.IMAGE_PAD * tokens for piece, tokens in zip(pieces, [*merged, 0], strict=True))
        inputs: dict[str, Any] = {}
        if shown:
            grids = torch.tensor([grid for _, grid in patches], device=self.device)
            inputs = {"pixel_values": torch.cat([rows for rows, _ in patches]), "image_grid_thw": grids}
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]], device=self.device)
        end, config = self.tokenizer.convert_tokens_to_ids(words.END), self.model.config
        network: Any = self.model  # transformers types generate() for itself, not for its callers
        with torch.compiler.set_stance("force_eager") if self.compiled else nullcontext():
            out = network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == config.image_token_id).int(),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    suppress_tokens=[config.image_token_id, config.video_token_id],  # they cannot be spoken
                    eos_token_id=end,
                    pad_token_id=end,
                ),
                logits_processor=[constraint] if constraint is not None else None,
                **inputs,
            )
        written = out[0, ids.shape[1] :]
        return str(self.tokenizer.decode(written, skip_special_tokens=True)), ids.shape[1], len(written)

    def yes_losses(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> Tensor:
        """-log P("Yes") of every question, (B,Q) fp32 on the frames' device, all in one packed forward.

        ``frames`` (B,K,3,H,W) float in [0,1]; ``questions`` B lists of Q; ``frame_indices`` the K frames'
        numbers in the whole video, which runs at ``fps``. Differentiable with respect to the frames. A model type that
        would mix packed questions gets a row a question, behind one look at the video. With ``others`` it is their mean
        with this teacher's, or of each question the worst.
        """
        own = self._own_losses(frames, questions, fps, frame_indices)
        if not self.others:
            return own
        all_of_them = torch.stack(
            [own, *(each.yes_losses(frames, questions, fps, frame_indices) for each in self.others)]
        )
        return all_of_them.amax(0) if self.combine == "worst" else all_of_them.mean(0)

    def _own_losses(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> Tensor:
        if self.family.packs:
            return self._losses(self.forward_packed(frames, questions, fps, frame_indices)).to(frames.device)
        self._check(frames, questions, frame_indices)
        rows = [[question] for row in questions for question in row]
        losses = self._losses(self._forward(frames, rows, fps, frame_indices))  # (B*Q, 1)
        return losses.view(len(questions), -1).to(frames.device)

    def yes_losses_separate(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> Tensor:
        """The same values as ``yes_losses`` from one forward a question: the reference, Q times the work."""
        columns = [[[question] for question in column] for column in zip(*questions, strict=True)]
        return torch.cat([self.yes_losses(frames, column, fps, frame_indices) for column in columns], dim=1)

    def forward_packed(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> PackedOutput:
        """One forward over B videos with Q questions each; arguments as in ``yes_losses``, gradients on.

        Raises UserError for several questions and a model type that would mix them.
        """
        self._check(frames, questions, frame_indices)
        if not self.family.packs and len(questions[0]) > 1:
            raise UserError(
                f"the layers of {type(self.model).__name__} ignore attention masks, so packed questions would leak "
                "into each other; ask one question a row"
            )
        return self._forward(frames, questions, fps, frame_indices)

    def _check(self, frames: Tensor, questions: Sequence[Sequence[str]], frame_indices: Sequence[int]) -> None:
        b, k = frames.shape[:2]
        if len(questions) != b or len({len(row) for row in questions}) != 1 or len(frame_indices) != k:
            raise ValueError(
                f"{b} videos of {k} frames need {b} equally long lists of questions and {k} frame indices, "
                f"got {[len(row) for row in questions]} questions and {len(frame_indices)} indices"
            )

    def _forward(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> PackedOutput:
        """B videos and R rows of questions, R a multiple of B: each video serves R/B rows."""
        language, b, each = self.model.model.language_model, len(frames), len(questions) // len(frames)
        with self._recomputing():
            seen = self.family.look(self.model, self.vision, frames.to(self.device))
            packed = self._pack(seen.grid, questions, fps, tuple(frame_indices))
            text = language.embed_tokens(packed.ids)  # (R,S,D)
            is_video = torch.zeros_like(packed.ids, dtype=torch.bool).index_fill(1, packed.video, True)
            features = seen.features.to(text.dtype).repeat_interleave(each, 0)
            hidden = language(
                inputs_embeds=text.index_copy(1, packed.video, features),
                position_ids=self.family.position_ids(packed.positions),
                use_cache=False,
                # Alone in its row a question needs no mask: it is causal, and the filling behind it is never read.
                **(packed.attention() if self.family.packs else {}),
                **self.family.extras(seen, is_video),
            ).last_hidden_state
        assert len(hidden) == b * each
        return PackedOutput(hidden, self.model.lm_head(at(hidden, packed.answers)), packed)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        # transformers recomputes layers in training mode only, and generates wrongly while it does.
        training = self.model.training
        if self.activation_checkpointing:
            self.model.train()
        try:
            yield
        finally:
            if self.activation_checkpointing:
                self.model.train(training)

    def _losses(self, output: PackedOutput) -> Tensor:
        logits = output.answer_logits.to(torch.promote_types(output.answer_logits.dtype, torch.float32))
        log_p = logits.log_softmax(-1)  # (B,Q,A,V)
        if len(self._variant_ids) > 1:
            return -log_p[:, :, 0, self._variant_ids].logsumexp(-1)
        answer = torch.tensor(self.answer_ids, device=logits.device).expand(logits.shape[:-1])
        return -log_p.gather(-1, answer[..., None]).sum((-2, -1))

    def _variants(self, answers: Sequence[str]) -> list[int]:
        """First tokens of the answers; UserError unless there is one answer, or all are of one token."""
        ids = [self._encode(answer) for answer in answers]
        if not all(ids):
            raise UserError(f"teacher.answers {list(answers)}: the teacher's vocabulary has no token for one of them")
        if len(ids) > 1 and any(len(tokens) != 1 for tokens in ids):
            raise UserError(f"teacher.answers {list(answers)}: variants must be one token each; give them alone")
        return list(dict.fromkeys(tokens[0] for tokens in ids))

    def _pack(
        self, grid: Grid, questions: Sequence[Sequence[str]], fps: float, frame_indices: tuple[int, ...]
    ) -> Packed:
        key = (grid, fps, frame_indices, tuple(map(tuple, questions)), self.device)
        if self._packed is None or self._packed[0] != key:  # the optimization loop asks the same every step
            with torch.inference_mode(False):  # what is kept must serve later calls that need gradients
                ids = [[self._ids_of_question(question) for question in row] for row in questions]
                packed = pack(self._prefix(grid, fps, frame_indices), ids, self.answer_ids)
                self._packed = (key, packed.to(self.device))
        return self._packed[1]

    def _prefix(self, grid: Grid, fps: float, frame_indices: tuple[int, ...]) -> Prefix:
        key = (grid, fps, frame_indices)
        if key not in self._prefixes:
            seconds = None
            if self.prompts.timestamps:
                seconds = self.family.seconds(fps, frame_indices, self.vision.temporal_patch)
            opening = words.chat_text(self.tokenizer, [("user", "")], self.family.slot)
            text = opening.partition(self.family.slot)[0] + self.family.video_text(self.vision, grid, seconds)
            ids = self._encode(text)
            self._prefixes[key] = self.family.prefix(self.model, ids, self.vision, grid, fps, frame_indices)
        return self._prefixes[key]

    def _ids_of_question(self, question: str) -> list[int]:
        if question not in self._question_ids:
            self.refuse_special_tokens(question)
            text = self.prompts.question.format(question=question)
            chat = words.chat_text(self.tokenizer, [("user", text)], self.family.slot)
            self._question_ids[question] = self._encode(chat.partition(self.family.slot)[2])
        return self._question_ids[question]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise UserError(f"the teacher's vocabulary lacks a word of {text!r}; use words it knows")
        return ids

    def check_words(self, text: str) -> None:
        """Raises UserError for a text with words that a word-level vocabulary lacks."""
        self._encode(text)

    def refuse_special_tokens(self, text: str) -> None:
        """Raises UserError for a text that would take over the chat."""
        for token in self.tokenizer.get_added_vocab():
            if token in text:
                raise UserError(f"{text!r} holds the teacher's control token {token}; leave it out")


def check_teacher(model: str | Path) -> None:
    """Raises UserError for what is missing here, and for a model type that cannot be a teacher; of a model on the hub
    only config.json is fetched. To be called before anything large is downloaded or read."""
    folder = find_folder(model, ("config.json",))
    with naming(f"teacher {model}"):
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    if kind not in FAMILIES:
        raise UserError(
            f"{model} is a {kind!r} model, which cannot be a teacher here; use one that sees videos: "
            f"{', '.join(FAMILIES)} (docs/models.md)"
        )
    if Path(model).is_dir() and not list(folder.glob("*.safetensors")):
        raise UserError(f"teacher {folder}: model.safetensors is missing; fetch it again")


def find_folder(model: str | Path, files: Sequence[str] = FILES) -> Path:
    """A local folder as it is; of a hub id the ``files``, downloaded or from the cache. Raises UserError."""
    folder = _local(model)
    if folder is None:
        from huggingface_hub import snapshot_download

        try:
            folder = _local(snapshot_download(str(model), allow_patterns=list(files)))
        except UserError:
            raise
        except Exception as error:  # the hub raises a dozen unrelated types; all mean the same to the user
            raise UserError(f"teacher: there is no folder {model}, and {not_given(str(model), error)}") from error
        assert folder is not None
    return folder


def _local(model: str | Path) -> Path | None:
    """A local folder, None for a hub id; UserError for what is neither and for a folder without config.json."""
    folder = Path(model)
    if not folder.is_dir():
        if not on_hub(str(model)):
            raise UserError(f"no teacher at {model}: not a local folder; give one or a hub id (owner/name)")
        return None
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: config.json is missing; give a Qwen3-VL model in transformers' layout")
    return folder

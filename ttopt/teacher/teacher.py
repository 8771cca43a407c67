"""The teacher: a frozen Qwen3-VL that writes yes/no questions about a task and grades videos with them.

VLM-as-Teacher (arXiv 2606.02564), section 3 and Algorithm 1: vqa(v, q) = -sum_l log P(a_l | v, q, a_<l),
where a is "Yes". All questions about a video share one forward (ttopt/teacher/packing.py).

Shapes: B videos, K frames, Q questions each, A answer tokens, S tokens a row, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3VLForConditionalGeneration

from ttopt.errors import UserError
from ttopt.sample import Sample
from ttopt.teacher import prompts as words
from ttopt.teacher.packing import Packed, PackedOutput, Prefix, at, check_masks, make_prefix, pack
from ttopt.teacher.prompts import Prompts
from ttopt.teacher.queries import Queries, parse_queries
from ttopt.teacher.vision import Grid, Vision, speed_up


class Teacher:
    """A frozen vision-language model, its tokenizer, its preprocessing and its wording.

    The constructor takes a model in memory, as training does, and leaves its mode and requires_grad alone;
    ``load`` takes one from a folder. Raises UserError for a model whose layers do not obey attention masks.
    """

    def __init__(
        self,
        model: Qwen3VLForConditionalGeneration,
        tokenizer: Any,
        vision: Vision | None = None,
        prompts: Prompts | None = None,
        answer: str = "Yes",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.vision = vision or Vision.of(model.config)
        self.prompts = prompts or Prompts()
        self.answer_ids = self._encode(answer)
        model.set_attn_implementation("sdpa")  # "eager" wants additive masks, "flash" ignores ours
        speed_up(model.model.visual)
        check_masks(model)
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
        answer: str = "Yes",
        checkpoint: bool = False,
    ) -> Teacher:
        """A frozen teacher from a local folder or a hub id, in transformers' layout (safetensors only).

        ``checkpoint`` recomputes layers in the backward pass: less memory, the same gradient. Raises
        UserError for what is missing, and for model types whose layers would mix packed questions.
        """
        folder = find_folder(model)
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "qwen3_vl":
            raise UserError(
                f"{model} is a {config.model_type!r} model; all questions are packed into one forward, kept "
                "apart by a mask that this type is not known to obey: use a Qwen3-VL checkpoint"
            )
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
        )
        network, report = loaded
        if report["missing_keys"]:
            first = min(report["missing_keys"])
            raise UserError(f"{model}: {first} is missing from the weights; fetch them again")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network.to(device).eval().requires_grad_(False)
        if checkpoint:  # works in training mode only, which changes nothing else: Qwen3-VL has no dropout
            network.train().gradient_checkpointing_enable({"use_reentrant": False})
        return cls(network, tokenizer, Vision.load(folder, config), Prompts.load(folder), answer)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def write_queries(self, sample: Sample) -> Queries:
        """The teacher's own questions about (prompt, first frame), greedily generated (Algorithm 1, line 1).

        A reply that cannot be read is shown to the teacher once, with the error; then it is a UserError.
        """
        self._refuse_special_tokens(sample.prompt)
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
            raise UserError(
                f"sample {sample.id}: the teacher wrote no usable questions, asked twice; {error}. "
                f"Its reply: {second[:300]!r}. Give the questions yourself, or use a larger teacher"
            ) from error

    @torch.no_grad()
    def reply(self, chat: Sequence[tuple[str, str]], image: Tensor | None, max_new_tokens: int = 512) -> str:
        """Greedy answer to a chat of (role, text) messages; ``image`` (3,H,W) in [0,1] opens the first."""
        text = words.chat_text(self.tokenizer, chat, words.IMAGE_SLOT if image is not None else "")
        inputs: dict[str, Any] = {}
        if image is not None:
            rows, grid = self.vision.image_patches(image.to(self.device, torch.float32))
            tokens = grid[1] * grid[2] // self.vision.merge**2
            text = text.replace(words.IMAGE_PAD, words.IMAGE_PAD * tokens)
            inputs = {"pixel_values": rows, "image_grid_thw": torch.tensor([grid], device=self.device)}
        ids = torch.tensor([self.tokenizer(text, add_special_tokens=False)["input_ids"]], device=self.device)
        end, config = self.tokenizer.convert_tokens_to_ids(words.END), self.model.config
        network: Any = self.model  # transformers types generate() for itself, not for its callers
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
            **inputs,
        )
        return str(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    def yes_losses(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> Tensor:
        """-log P("Yes") of every question, (B,Q) fp32 on the frames' device, all in one packed forward.

        ``frames`` (B,K,3,H,W) float in [0,1]; ``questions`` B lists of Q; ``frame_indices`` the K frames'
        numbers in the whole video, which runs at ``fps``. Differentiable with respect to the frames.
        """
        return self._losses(self.forward_packed(frames, questions, fps, frame_indices)).to(frames.device)

    def yes_losses_separate(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> Tensor:
        """The same values as ``yes_losses`` from one forward a question: the reference, Q times the work."""
        columns = [[[question] for question in column] for column in zip(*questions, strict=True)]
        return torch.cat([self.yes_losses(frames, column, fps, frame_indices) for column in columns], dim=1)

    def forward_packed(
        self, frames: Tensor, questions: Sequence[Sequence[str]], fps: float, frame_indices: Sequence[int]
    ) -> PackedOutput:
        """One forward over B videos with Q questions each; arguments as in ``yes_losses``, gradients on."""
        b, k = frames.shape[:2]
        if len(questions) != b or len({len(row) for row in questions}) != 1 or len(frame_indices) != k:
            raise ValueError(
                f"{b} videos of {k} frames need {b} equally long lists of questions and {k} frame indices, "
                f"got {[len(row) for row in questions]} questions and {len(frame_indices)} indices"
            )
        net, language = self.model.model, self.model.model.language_model
        rows, grid = self.vision.video_patches(frames.to(self.device))
        seen = net.visual(
            rows.flatten(0, 1).to(net.visual.dtype),
            grid_thw=torch.tensor([grid] * b, device=self.device),
            frame_patches=grid[1] * grid[2],
            return_dict=True,
        )
        packed = self._pack(grid, questions, fps, tuple(frame_indices))

        text = language.embed_tokens(packed.ids)  # (B,S,D)
        is_video = torch.zeros_like(packed.ids, dtype=torch.bool).index_fill(1, packed.video, True)
        features = seen.pooler_output.unflatten(0, (b, -1)).to(text.dtype)
        hidden = language(
            inputs_embeds=text.index_copy(1, packed.video, features),
            position_ids=packed.positions,
            attention_mask=packed.mask,
            visual_pos_masks=is_video,
            deepstack_visual_embeds=seen.deepstack_features,
            use_cache=False,
        ).last_hidden_state
        return PackedOutput(
            hidden=hidden,
            answer_logits=self.model.lm_head(at(hidden, packed.answers)),
            patches=seen.last_hidden_state.unflatten(0, (b, -1)),
            grid=grid,
            packed=packed,
        )

    def _losses(self, output: PackedOutput) -> Tensor:
        logits = output.answer_logits.to(torch.promote_types(output.answer_logits.dtype, torch.float32))
        answer = torch.tensor(self.answer_ids, device=logits.device).expand(logits.shape[:-1])
        return -logits.log_softmax(-1).gather(-1, answer[..., None]).sum((-2, -1))

    def _pack(
        self, grid: Grid, questions: Sequence[Sequence[str]], fps: float, frame_indices: tuple[int, ...]
    ) -> Packed:
        key = (grid, fps, frame_indices, tuple(map(tuple, questions)), self.device)
        if self._packed is None or self._packed[0] != key:  # the optimisation loop asks the same every step
            with torch.inference_mode(False):  # what is kept must serve later calls that need gradients
                ids = [[self._ids_of_question(question) for question in row] for row in questions]
                packed = pack(self._prefix(grid, fps, frame_indices), ids, self.answer_ids)
                self._packed = (key, packed.to(self.device))
        return self._packed[1]

    def _prefix(self, grid: Grid, fps: float, frame_indices: tuple[int, ...]) -> Prefix:
        key = (grid, fps, frame_indices)
        if key not in self._prefixes:
            t, h, w = grid[0], grid[1] // self.vision.merge, grid[2] // self.vision.merge
            seconds = None
            if self.prompts.timestamps:
                seconds = words.timestamps(fps, frame_indices, self.vision.temporal_patch)
            opening = words.chat_text(self.tokenizer, [("user", "")], words.VIDEO_SLOT)
            text = opening.partition(words.VIDEO_SLOT)[0] + words.video_text(seconds, t, h * w)
            ids = self._encode(text)
            self._prefixes[key] = make_prefix(ids, self.model.config.video_token_id, (h, w), t)
        return self._prefixes[key]

    def _ids_of_question(self, question: str) -> list[int]:
        if question not in self._question_ids:
            self._refuse_special_tokens(question)
            text = self.prompts.question.format(question=question)
            chat = words.chat_text(self.tokenizer, [("user", text)], words.VIDEO_SLOT)
            self._question_ids[question] = self._encode(chat.partition(words.VIDEO_SLOT)[2])
        return self._question_ids[question]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            raise UserError(f"the teacher's vocabulary lacks a word of {text!r}; use words it knows")
        return ids

    def _refuse_special_tokens(self, text: str) -> None:
        for token in self.tokenizer.get_added_vocab():
            if token in text:
                raise UserError(f"{text!r} holds the teacher's control token {token}; leave it out")


def find_folder(model: str | Path) -> Path:
    """A local folder as it is, a hub id downloaded or taken from the cache; UserError if there is neither."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
            folder = Path(snapshot_download(str(model), allow_patterns=wanted))
        except Exception as error:  # the hub raises a dozen unrelated types; all mean the same to the user
            raise UserError(
                f"no teacher at {model}: not a local folder, and not on the hub or in its cache ({error})"
            ) from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: config.json is missing; give a Qwen3-VL model in transformers' layout")
    return folder

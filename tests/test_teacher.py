"""The teacher against independent references: transformers' forward, positions and processors, PIL, numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_teacher import TEMPLATE, tiny_teacher_folder
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from ttopt.data.queries import Queries, parse_queries
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.teacher import Prompts, Teacher, Vision
from ttopt.models.teacher import prompts as words
from ttopt.models.teacher.attention import packed_attention
from ttopt.models.teacher.packing import check_masks, make_prefix

FPS, FRAMES = 8, 9
QUESTIONS = [
    [
        "is the red cross on the green pad at the end?",
        "does the blue square stay?",
        "is the red cross whole?",
    ],
    [
        "does the red cross move to the blue square by the end?",
        "is the end whole?",
        "does the blue square stay?",
    ],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_teacher_folder(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return Teacher.load(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The same weights in transformers' untouched model."""
    return Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()


def video(videos: int = 2, frames: int = FRAMES, height: int = 48, width: int = 48, seed: int = 0) -> Tensor:
    return torch.rand(videos, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def plain_loss(
    plain: Any,
    teacher: Teacher,
    frames: Tensor,
    text: str,
    answer: list[int],
    seconds: list[str] | None = None,
) -> Tensor:
    """-log P(answer) of one question about one video (K,3,H,W), by transformers from a processor's inputs."""
    pixels, (t, h, w) = teacher.vision.video_patches(frames[None])
    patch = "<|vision_start|>" + "<|video_pad|>" * (h * w // 4) + "<|vision_end|>"
    shown = "".join(f"<{seconds[i]} seconds>{patch}" if seconds else patch for i in range(t))
    chat = f"<|im_start|>user\n{shown}{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = teacher.tokenizer(chat, add_special_tokens=False)["input_ids"] + answer
    input_ids = torch.tensor([ids])
    logits = plain(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == plain.config.video_token_id).int() * 2,
        pixel_values_videos=pixels[0],
        video_grid_thw=torch.tensor([[t, h, w]]),
    ).logits[0]
    start = len(ids) - len(answer)
    return F.cross_entropy(logits[start - 1 : -1], torch.tensor(answer), reduction="sum")


# ---------------------------------------------------------------- preprocessing


@pytest.mark.parametrize("frames", [1, 4, 9])
def test_patch_rows_equal_a_loop_over_patches(frames: int) -> None:
    clip = video(1, frames, 32, 64)[0]
    rows, grid = Vision(patch=8, video_pixels=(1, 10**8)).video_patches(clip[None])
    x = ((clip - 0.5) / 0.5).numpy()
    x = np.concatenate([x] + [x[-1:]] * (frames % 2))
    wanted = [
        x[t : t + 2, :, i : i + 8, j : j + 8].swapaxes(0, 1).ravel()  # channel, frame, row, column
        for t in range(0, len(x), 2)
        for top in range(0, 32, 16)
        for left in range(0, 64, 16)  # blocks of 2x2 patches, which the model merges to one token
        for i in (top, top + 8)
        for j in (left, left + 8)
    ]
    assert grid == (len(x) // 2, 4, 8)
    np.testing.assert_array_equal(rows[0].numpy(), np.stack(wanted))


@pytest.mark.parametrize("frames", [2, 9, 24, 89])
@pytest.mark.parametrize("size", [(48, 48), (480, 832), (704, 1280), (20, 300), (1080, 1920)])
@pytest.mark.parametrize("patch", [8, 16])
def test_video_size_equals_smart_resize(frames: int, size: tuple[int, int], patch: int) -> None:
    vision = Vision(patch=patch)
    low, high = vision.video_pixels
    cap = max(min(768 * (2 * patch) ** 2, high // frames), int(low * 1.05)) * frames
    assert vision.video_size(frames, *size) == smart_resize(frames, *size, 2, 2 * patch, low, cap)


def test_resize_equals_pil() -> None:
    image = pytest.importorskip("PIL.Image")
    clip = video(1, 2, 75, 50)
    rows, grid = Vision(video_pixels=(1, 8192)).video_patches(clip)  # a budget that halves the frames
    assert grid == (1, 4, 4)
    wanted = [
        [np.asarray(image.fromarray(c.numpy()).resize((64, 64), image.Resampling.BICUBIC)) for c in frame]
        for frame in clip[0]
    ]
    same, _ = Vision(video_pixels=(1, 10**8)).video_patches(torch.tensor(np.array(wanted))[None])
    torch.testing.assert_close(rows, same, atol=1e-5, rtol=0)


def test_processor_files_set_budgets_and_must_agree(folder: Path, teacher: Teacher, tmp_path: Path) -> None:
    assert teacher.vision == Vision(patch=8)
    config = teacher.model.config
    both = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3}
    one = {"size": {"shortest_edge": 10, "longest_edge": 1000}} | both
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(one))
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(one | {"image_mean": [0.5] * 3}))
    with pytest.raises(UserError, match="image_mean differs"):
        Vision.load(tmp_path, config)
    (tmp_path / "video_preprocessor_config.json").unlink()
    vision = Vision.load(tmp_path, config)
    assert (vision.image_pixels, vision.video_pixels) == ((10, 1000), Vision().video_pixels)
    assert vision.mean == (0.4, 0.5, 0.6)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="preprocessor_config"):
        Vision.load(tmp_path, config)


def test_timestamps_equal_the_official_processor() -> None:
    for indices in ([0, 1, 2, 3], [0, 4, 8, 12, 88], [7]):
        wanted = Qwen3VLProcessor._calculate_timestamps(cast(Any, None), list(indices), 24, 2)
        assert words.timestamps(24, indices, 2) == wanted


# ---------------------------------------------------------------- one packed forward


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("height", [48, 64])
def test_losses_equal_a_plain_forward(folder: Path, plain: Any, timed: bool, height: int) -> None:
    teacher = Teacher.load(folder)
    teacher.prompts = Prompts("{question}", "{prompt}", timestamps=timed)
    clip = video(height=height)
    losses = teacher.yes_losses(clip, QUESTIONS, FPS, range(0, 2 * FRAMES, 2))
    assert losses.shape == (2, 3) and losses.dtype == torch.float32
    # frames 0 2 | 4 6 | 8 10 | 12 14 | 16 16 at 8 frames a second
    seconds = ["0.1", "0.6", "1.1", "1.6", "2.0"] if timed else None
    for b, row in enumerate(QUESTIONS):
        for q, question in enumerate(row):
            wanted = plain_loss(plain, teacher, clip[b], question, teacher.answer_ids, seconds)
            torch.testing.assert_close(losses[b, q], wanted, atol=1e-5, rtol=0)


def test_an_answer_of_several_tokens_is_summed(folder: Path, plain: Any) -> None:
    teacher = Teacher.load(folder, answer="Yes the end .")
    assert len(teacher.answer_ids) == 4
    clip = video(1)
    losses = teacher.yes_losses(clip, QUESTIONS[:1], FPS, range(FRAMES))
    wanted = [plain_loss(plain, teacher, clip[0], question, teacher.answer_ids) for question in QUESTIONS[0]]
    torch.testing.assert_close(losses[0], torch.stack(wanted), atol=2e-5, rtol=0)


def test_packed_equals_separate_in_loss_and_gradient(teacher: Teacher) -> None:
    clip = video().requires_grad_()
    weights = torch.rand(2, 3)
    results = []
    for losses_of in (teacher.yes_losses, teacher.yes_losses_separate):
        losses = losses_of(clip, QUESTIONS, FPS, range(FRAMES))
        results.append((losses.detach(), *torch.autograd.grad((losses * weights).sum(), clip)))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)
    assert results[0][1].abs().amax((2, 3, 4)).min() > 1e-3  # every frame matters


def test_a_row_does_not_depend_on_its_neighbors(teacher: Teacher) -> None:
    clip = video()
    together = teacher.yes_losses(clip, QUESTIONS, FPS, range(FRAMES))
    alone = [teacher.yes_losses(clip[b : b + 1], QUESTIONS[b : b + 1], FPS, range(FRAMES)) for b in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_gradient_equals_finite_differences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def norm64(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    # the model computes norms and rotary embeddings in fp32 on purpose; fp64 here makes differences exact
    monkeypatch.setattr(qwen.Qwen3VLTextRMSNorm, "forward", norm64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    teacher = Teacher.load(folder)
    teacher.model.double()
    clip = video(1, 3, 48, 64).double().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return teacher.yes_losses(x, QUESTIONS[:1], FPS, range(3)).sum()

    (gradient,) = torch.autograd.grad(loss(clip), clip)
    for seed in range(3):
        direction = video(1, 3, 48, 64, seed=seed + 1).double() - 0.5
        step = 1e-5 * direction
        with torch.no_grad():
            slope = (loss(clip + step) - loss(clip - step)) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_checkpointing_changes_nothing(folder: Path, teacher: Teacher) -> None:
    results = []
    for each in (teacher, Teacher.load(folder, activation_checkpointing=True)):
        clip = video().requires_grad_()
        losses = each.yes_losses(clip, QUESTIONS, FPS, range(FRAMES))
        results.append((losses.detach(), *torch.autograd.grad(losses.sum(), clip)))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)
    chat = [("user", "is the end whole")]
    assert Teacher.load(folder, activation_checkpointing=True).reply(chat, None, 6) == teacher.reply(chat, None, 6)


def test_compiled_layers_grade_the_same_and_leave_writing_alone(
    folder: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def traced(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=traced))
    torch._dynamo.reset()
    ours = Teacher.load(folder)
    ours.compile()
    made = []
    for longer in range(3):
        shown, again = (video(1).requires_grad_() for _ in range(2))
        questions = [[question + " at the end" * longer for question in QUESTIONS[0]]]
        losses = ours.yes_losses(shown, questions, FPS, range(FRAMES))
        losses.sum().backward()
        wanted = teacher.yes_losses(again, questions, FPS, range(FRAMES))
        wanted.sum().backward()
        torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shown.grad, again.grad, atol=1e-6, rtol=1e-3)
        made.append(len(graphs))
    assert made == [2, 3, 3], "one for each kind of layer; after a second length, one for all lengths"
    chat = [("user", "is the red cross whole ?")]
    assert ours.reply(chat, video(1)[0, 0], 8) == teacher.reply(chat, video(1)[0, 0], 8)
    assert len(graphs) == 3, "a token at a time would be compiled anew for each length"
    torch._dynamo.reset()


def test_attention_over_packed_rows_equals_one_masked_call() -> None:
    """Values and gradients, with fewer key heads than query heads."""
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True  # type: ignore[assignment]
    prefix, own = 7, torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool().tril()
    mask = torch.cat([torch.ones(5, prefix, dtype=torch.bool), own], dim=1)
    whole = torch.ones(12, 12, dtype=torch.bool).tril()
    whole[prefix:] = mask
    inputs = [torch.randn(1, heads, 12, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    found, _ = packed_attention(module, *inputs, mask[None, None], prefix_tokens=prefix, scaling=0.5)
    wanted, _ = packed_attention(module, *inputs, whole[None, None], scaling=0.5)
    torch.testing.assert_close(found, wanted)
    for ours, reference in zip(*(torch.autograd.grad(x.cos().sum(), inputs) for x in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, reference)


def test_answers_of_one_token_add_up(folder: Path, teacher: Teacher) -> None:
    clip = video(1)
    both = Teacher.load(folder, answer=["Yes", "No"]).yes_losses(clip, QUESTIONS[:1], FPS, range(FRAMES))
    no = Teacher.load(folder, answer="No").yes_losses(clip, QUESTIONS[:1], FPS, range(FRAMES))
    yes = teacher.yes_losses(clip, QUESTIONS[:1], FPS, range(FRAMES))
    torch.testing.assert_close((-both).exp(), (-yes).exp() + (-no).exp(), atol=1e-6, rtol=1e-5)
    with pytest.raises(UserError, match="must be one token each"):
        Teacher.load(folder, answer=["Yes", "the end"])


def test_bfloat16_is_close_and_reported_in_fp32(folder: Path, teacher: Teacher) -> None:
    clip = video().requires_grad_()
    losses = Teacher.load(folder, dtype="bfloat16").yes_losses(clip, QUESTIONS, FPS, range(FRAMES))
    losses.sum().backward()
    assert losses.dtype == torch.float32 and clip.grad is not None and clip.grad.isfinite().all()
    wanted = teacher.yes_losses(clip, QUESTIONS, FPS, range(FRAMES))
    torch.testing.assert_close(losses, wanted, atol=0.3, rtol=0)


def test_training_reaches_every_weight_it_should(folder: Path) -> None:
    teacher = Teacher.load(folder)
    teacher.model.train().requires_grad_(True)
    out = teacher.forward_packed(video(), QUESTIONS, FPS, range(FRAMES))
    out.logits.log_softmax(-1)[..., teacher.answer_ids[0]].mean().backward()
    assert [name for name, p in teacher.model.named_parameters() if p.grad is None] == []


def test_packed_output_says_where_things_are(teacher: Teacher) -> None:
    out = teacher.forward_packed(video(), QUESTIONS, FPS, range(FRAMES))
    ids, tokenizer = out.packed.ids, teacher.tokenizer
    closing = len(tokenizer(f"{words.END}\n{words.START}assistant\n", add_special_tokens=False)["input_ids"])
    behind_video = int(out.packed.video[-1]) + 1 + len(tokenizer(words.VISION_END)["input_ids"])
    for b, row in enumerate(QUESTIONS):
        start = behind_video
        for q, question in enumerate(row):
            (last,) = out.packed.answers[b, q].tolist()
            asked = tokenizer(question, add_special_tokens=False)["input_ids"]
            assert ids[b, start : start + len(asked)].tolist() == asked
            start += len(asked) + closing
            assert last == start - 1, "the next question begins behind it"
            assert tokenizer.decode(ids[b, last : last + 1]) == "assistant"
            torch.testing.assert_close(teacher.model.lm_head(out.hidden[b, last]), out.logits[b, q])
    assert out.packed.video.shape == (5 * 9,)
    assert out.hidden.shape == (*ids.shape, 48) and out.logits.shape == (2, 3, len(tokenizer))


def test_positions_equal_the_models_own(teacher: Teacher, plain: Any) -> None:
    text = words.video_text([0.5, 1.5, 2.5], 3, 2 * 4)
    ids = teacher.tokenizer("<|im_start|>user\n" + text, add_special_tokens=False)["input_ids"]
    prefix = make_prefix(ids, plain.config.video_token_id, (2, 4), 3)
    longer = torch.tensor([[*ids, 9, 9]])
    kinds = (longer == plain.config.video_token_id).int() * 2
    wanted, _ = plain.model.get_rope_index(longer, kinds, video_grid_thw=torch.tensor([[3, 4, 8]]))
    assert torch.equal(prefix.positions, wanted[:, 0, :-2])
    assert [prefix.next_position] * 3 == wanted[:, 0, -2].tolist()


def test_a_chat_template_gives_the_built_in_format(folder: Path, teacher: Teacher) -> None:
    templated = Teacher.load(folder)
    templated.tokenizer.chat_template = TEMPLATE
    packs = [t.forward_packed(video(), QUESTIONS, FPS, range(FRAMES)).packed for t in (teacher, templated)]
    assert torch.equal(packs[0].ids, packs[1].ids)
    chat = [("user", "is the end whole"), ("assistant", "Yes"), ("user", "and the red cross")]
    for slot in ("", words.IMAGE_SLOT):
        texts = [words.chat_text(each.tokenizer, chat, slot) for each in (teacher, templated)]
        assert texts[0] == texts[1]


def test_a_model_that_may_think_answers_at_once(folder: Path, teacher: Teacher) -> None:
    """Qwen3.5's template opens a thought unless told not to, and P("Yes") would be that of the thought's beginning."""
    thinking = Teacher.load(folder)
    thinking.tokenizer.chat_template = TEMPLATE + (
        "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}"
        "{% else %}{{ '<think>\\n' }}{% endif %}"
    )
    chat = [("user", "is the end whole")]
    assert words.chat_text(thinking.tokenizer, chat) == (
        words.chat_text(teacher.tokenizer, chat) + "<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    "opened, closed",
    [("<think>\n", "</think>"), ("<think>", "</think>"), ("<THINKING>\n", "</THINKING>"), ("[THINK]", "[/THINK]")],
)
def test_a_model_that_always_thinks_answers_at_once(folder: Path, teacher: Teacher, opened: str, closed: str) -> None:
    thinking = Teacher.load(folder)
    thinking.tokenizer.chat_template = TEMPLATE + "{{ " + repr(opened) + " }}"
    for chat in ([("user", "is the end whole")], [("user", "a"), ("assistant", "<think>\n"), ("user", "is the end")]):
        plain = words.chat_text(teacher.tokenizer, chat, words.IMAGE_SLOT)
        assert words.chat_text(thinking.tokenizer, chat, words.IMAGE_SLOT) == f"{plain}{opened.strip()}\n\n{closed}\n\n"


def test_a_thinking_teacher_is_graded_behind_its_thoughts(folder: Path, teacher: Teacher) -> None:
    thinking = Teacher.load(folder)
    thinking.tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    thinking.model.resize_token_embeddings(len(thinking.tokenizer))
    thinking.tokenizer.chat_template = TEMPLATE + "{{ '<think>\n' }}"
    rows = [t.forward_packed(video(), QUESTIONS, FPS, range(FRAMES)).packed for t in (teacher, thinking)]
    more = thinking.tokenizer("<think></think>", add_special_tokens=False)["input_ids"]
    for plain, behind in zip(rows[0].answers[0], rows[1].answers[0], strict=True):
        assert rows[1].ids[0, behind - 1 : behind + 1].tolist() == more
        assert rows[1].ids[0, behind - 2] == rows[0].ids[0, plain]


def test_what_inference_mode_left_behind_serves_training(folder: Path) -> None:
    teacher = Teacher.load(folder)
    with torch.inference_mode():
        wanted = teacher.yes_losses(video(), QUESTIONS, FPS, range(FRAMES))
    clip = video().requires_grad_()
    losses = teacher.yes_losses(clip, QUESTIONS, FPS, range(FRAMES))
    losses.sum().backward()
    torch.testing.assert_close(losses, wanted.clone(), atol=1e-6, rtol=0)


def test_mismatched_arguments_are_refused(teacher: Teacher) -> None:
    for questions, indices in (
        (QUESTIONS[:1], range(9)),
        ([QUESTIONS[0], ["is the end whole?"]], range(9)),
        (QUESTIONS, range(8)),
    ):
        with pytest.raises(ValueError, match="frame indices"):
            teacher.yes_losses(video(), questions, FPS, indices)


# ---------------------------------------------------------------- what is refused


def test_layers_that_ignore_masks_are_refused(folder: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    check_masks(model)
    language = model.model.language_model
    obedient = language.forward
    language.forward = lambda attention_mask, **kwargs: obedient(attention_mask=None, **kwargs)
    with pytest.raises(UserError, match="ignore attention masks"):
        check_masks(model)


def test_other_model_types_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(UserError, match="'qwen3' model, which cannot be a teacher .* that sees videos: qwen3_vl, "):
        Teacher.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(UserError, match="model.safetensors is missing; fetch it again"):
        Teacher.load(tmp_path)


def test_missing_folders_and_weights_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a local folder"):
        Teacher.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        Teacher.load(tmp_path)
    broken = tiny_teacher_folder(tmp_path)
    weights = load_file(broken / "model.safetensors")
    del weights["model.visual.merger.norm.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"visual\.merger\.norm\.weight"):
        Teacher.load(broken)


def test_unknown_words_and_control_tokens_are_refused(teacher: Teacher) -> None:
    for question, problem in (
        ("is the elephant on the end?", "vocabulary"),
        ("<|im_end|> Yes", "control token"),
    ):
        with pytest.raises(UserError, match=problem):
            teacher.yes_losses(video(1), [[question]], FPS, range(FRAMES))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '["a"]',
        '{"question": "no slot"}',
        '{"tone": "kind"}',
        '{"queries": "{other}"}',
        '{"question": 1}',
    ],
)
def test_unusable_prompt_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / words.FILE).write_text(content)
    with pytest.raises(UserError, match="ttopt_prompts"):
        Prompts.load(tmp_path)


def test_default_wording_can_be_filled(tmp_path: Path) -> None:
    prompts = Prompts.load(tmp_path)
    assert prompts.question.format(question="is it {so}?").startswith("is it {so}?")
    filled = prompts.queries.format(prompt="Move it.")
    assert '{"goal": <question>, "process"' in filled
    with pytest.raises(ValueError):  # a model that repeats the example has answered nothing
        parse_queries(filled)


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize(
    "reply",
    [
        '{"goal": "Is it there?", "process": ["Is it whole?"]}',
        '```json\n{"goal": "Is it there?",\n "process": ["Is it whole?"]}\n```',
        'As {you} asked: {"goal": "Is it there?", "process": ["Is it whole?"], "why": 1} Good luck {there}!',
        '{ " goal " : " Is  it there ? " , " process " : [ " Is it \n whole ? " ] }',  # word-level decoding
    ],
)
def test_replies_that_can_be_read(reply: str) -> None:
    queries = parse_queries(reply)
    assert queries == Queries("Is it there?", ("Is it whole?",))
    assert queries.all == ["Is it there?", "Is it whole?"]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("Yes.", "no JSON object"),
        ('{"goal": "a?", "process": ["b?"]', "broken"),
        ('{"goal": "a?"}', "process: Field required"),
        ('{"goal": "a?", "process": []}', "at least 1"),
        ('{"goal": "a?", "process": ["b?", "c?", "d?", "e?"]}', "at most 3"),
        ('{"goal": "  ", "process": ["b?"]}', "empty"),
        ('{"goal": "a?", "process": [""]}', "empty"),
        ('{"goal": 3, "process": ["b?"]}', "valid string"),
        ('{"goal": "a?", "process": "b?"}', "valid list"),
    ],
)
def test_replies_that_cannot_be_read(reply: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_queries(reply)


def test_queries_need_one_to_three_process_questions() -> None:
    for process in ((), ("a?", " "), ("a?",) * 4):
        with pytest.raises(UserError, match="1 to 3"):
            Queries("goal?", process)


def sample(image: bool = True) -> Sample:
    first = video(1, 1)[0, 0] if image else None
    return Sample("one", "move the red cross to the green pad", first, FRAMES, FPS, 48, 48)


GOOD = '{"goal": "is the red cross on the green pad?", "process": ["does the blue square stay, whole?"]}'


def scripted(teacher: Teacher, replies: list[str], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Lets the model generate these replies; returns the prompts it will have been given."""
    asked: list[list[int]] = []

    def generate(input_ids: Tensor, **kwargs: Any) -> Tensor:
        asked.append(input_ids[0].tolist())
        reply = teacher.tokenizer(replies[len(asked) - 1] + "<|im_end|>", add_special_tokens=False)
        return torch.tensor([[*asked[-1], *reply["input_ids"]]])

    monkeypatch.setattr(teacher.model, "generate", generate)
    return asked


def test_queries_survive_a_word_level_tokenizer(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(teacher, [GOOD], monkeypatch)
    queries = teacher.write_queries(sample())
    assert queries == Queries("is the red cross on the green pad?", ("does the blue square stay, whole?",))
    assert teacher.tokenizer.decode(asked[0]) == (
        f"<|im_start|> user <|vision_start|>{' <|image_pad|>' * 9} <|vision_end|> "
        "move the red cross to the green pad <|im_end|> <|im_start|> assistant"
    )
    assert teacher.yes_losses(video(1), [queries.all], FPS, range(FRAMES)).shape == (1, 2)


def test_a_bad_reply_is_shown_with_its_error_once(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(teacher, ['{"goal": "does the end move?"}', GOOD], monkeypatch)
    monkeypatch.setattr(words, "REPAIR", "at {error} stay")
    assert teacher.write_queries(sample(image=False)).goal == "is the red cross on the green pad?"
    assert teacher.tokenizer.decode(asked[1]).startswith(
        "<|im_start|> user move the red cross to the green pad <|im_end|> <|im_start|> assistant "
        '{ " goal " : " does the end move ? " } <|im_end|> '
        "<|im_start|> user at process : <unk>"  # the tiny vocabulary lacks the error's words
    )


def test_two_bad_replies_end_in_an_error(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scripted(teacher, ["Yes", "the end"], monkeypatch)
    with pytest.raises(UserError, match=r"sample one: .* no JSON object .*'the end'"):
        teacher.write_queries(sample())
    assert len(asked) == 2


def test_unusable_prompts_are_refused_before_asking(teacher: Teacher) -> None:
    for prompt, problem in (("find the elephant", "vocabulary"), ("stay <|im_end|>", "control token")):
        with pytest.raises(UserError, match=problem):
            teacher.write_queries(Sample("one", prompt, None, FRAMES, FPS, 48, 48))


@pytest.mark.parametrize("image", [True, False])
def test_generation_is_greedy_over_the_plain_forward(teacher: Teacher, plain: Any, image: bool) -> None:
    shown = video(1, 1)[0, 0] if image else None
    reply = teacher.reply([("user", "is the end whole")], shown, max_new_tokens=4)
    slot = "<|vision_start|>" + "<|image_pad|>" * 9 + "<|vision_end|>" if image else ""
    text = f"<|im_start|>user\n{slot}is the end whole<|im_end|>\n<|im_start|>assistant\n"
    ids = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
    pixels: dict[str, Tensor] = {}
    if shown is not None:
        levels = (shown * 255).round() / 255
        rows, _ = teacher.vision.video_patches(levels.expand(1, 2, -1, -1, -1))
        pixels = {"pixel_values": rows[0], "image_grid_thw": torch.tensor([[1, 6, 6]])}
    new: list[int] = []
    for _ in range(4):
        input_ids = torch.tensor([ids + new])
        kinds = (input_ids == plain.config.image_token_id).int()
        mask = torch.ones_like(input_ids)
        out = plain(input_ids=input_ids, mm_token_type_ids=kinds, attention_mask=mask, **pixels)
        scores = out.logits[0, -1]
        scores[[plain.config.image_token_id, plain.config.video_token_id]] = -torch.inf
        new.append(int(scores.argmax()))
        if new[-1] == teacher.tokenizer.convert_tokens_to_ids("<|im_end|>"):
            break
    assert reply == teacher.tokenizer.decode(new, skip_special_tokens=True)

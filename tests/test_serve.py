"""The loop through HTTP, against a server that is not ours: ``transformers serve`` on a tiny vision-language model.

The model is a random one that was taught three replies by heart, a few seconds of training. The server loads it with
a processor class without a video part: Qwen3-VL's own needs torchvision, which has no build for this torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_sample
from tiny_loop import plan, solve, verdict
from tiny_teacher import tiny_config
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from loop.wording import Wording, message
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import WEIGHTS, ChatSettings, FitSettings
from ttopt.data import miniworld
from ttopt.data.sample import Sample
from ttopt.models.chat import LocalChat, Message, OpenAIChat, make_chat
from ttopt.models.load import Models, load_models
from ttopt.models.teacher import Teacher, prompts
from ttopt.record.result import Scored

pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")

Make = Callable[..., FitSettings]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TASK = tiny_sample().prompt
ACTION = "move the red square"
REASON = "it goes"


def asked_and_answered() -> list[tuple[Message, str]]:
    """A task of two steps: both plans, both verdicts (the second action's first clip is rejected by the first's words
    only, so one verdict serves both), and the end."""
    words, image = Wording.load("mini"), torch.rand(3, 48, 48)

    def planned(done: str, step: int) -> Message:
        return message(words.plan, None, [image], "current_image", prompt=TASK, done=done, step=step, steps=3)

    def checked(action: str) -> Message:
        return message(words.verify, None, [image] * 9, "clip_images", action=action, prompt=TASK)

    answers = [
        (planned("nothing.", 1), plan(ACTION, 2)),
        (planned(ACTION, 2), plan("go to the pad")),
        (planned(f"{ACTION} go to the pad", 3), plan(complete=True)),
        (checked(ACTION), verdict(True, 1.0, 1.0)),
        (checked("go to the pad"), verdict(True, 1.0, 1.0)),
    ]
    return [(asked, json.dumps(answer)) for asked, answer in answers]


def taught(folder: Path) -> Path:
    """A tiny Qwen3-VL that knows the replies above by heart, whatever the images show."""
    dialogue = asked_and_answered()
    pieces = r"[A-Za-z]+|\n|[^\sA-Za-z]"
    splitter = pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True)
    texts = [text for asked, answer in dialogue for text in (asked.text, answer)] + ["user\nassistant\n Yes"]
    found = {piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {piece: i for i, piece in enumerate(["<|endoftext|>", *SPECIAL, "<unk>", *sorted(found)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = splitter
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", pad_token="<|endoftext|>", eos_token="<|im_end|>",
        extra_special_tokens=SPECIAL, model_max_length=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(tiny_config(tokenizer))
    teacher = Teacher(model, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    rows = []
    for asked, answer in dialogue:
        text = prompts.chat_text(tokenizer, [("user", asked.text)], prompts.IMAGE_SLOT, len(asked.images))
        text = text.replace(prompts.IMAGE_PAD, prompts.IMAGE_PAD * 9)
        question = tokenizer(text, add_special_tokens=False)["input_ids"]
        reply = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((len(asked.images), torch.tensor([question + reply]), len(question)))
    for _ in range(400):
        total = torch.zeros(())
        for images, ids, start in rows:
            patches = [teacher.vision.image_patches(torch.rand(3, 48, 48)) for _ in range(images)]
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                pixel_values=torch.cat([patch for patch, _ in patches]),
                image_grid_thw=torch.tensor([grid for _, grid in patches]),
            ).logits
            total = total + torch.nn.functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:])
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if total.item() < 0.02 * len(rows):
            break
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / prompts.FILE).write_text(json.dumps({"question": "{question}", "queries": "{prompt}"}))
    return folder


def served(model: Path, folder: Path) -> Path:
    """A copy of ``model`` that ``transformers serve`` can load: with a chat template and an image processor."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())["vision_config"]
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "patch_size": config["patch_size"],
                "temporal_patch_size": config["temporal_patch_size"],
                "merge_size": config["spatial_merge_size"],
                "size": {"shortest_edge": 1, "longest_edge": 16777216},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        )
    )
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "PaddleOCRVLProcessor"}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["image_token"] = "<|image_pad|>"
    tokenizer["model_specific_special_tokens"] = {"image_token": "<|image_pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


class Server:
    """``transformers serve`` in a process of its own, on a free port."""

    def __init__(self, model: Path) -> None:
        self.model = model
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model)]
        self.log = (model / "serve.log").open("w")
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def wait(self, seconds: float = 180) -> None:
        for _ in range(int(seconds * 2)):
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server did not start: {(self.model / 'serve.log').read_text()[-3000:]}")

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self.log.close()

    def chat(self, **settings: Any) -> OpenAIChat:
        given = {"timeout": 60.0, "max_retries": 0, "temperature": 0.0, "max_tokens": 400, "prompts": "mini"}
        url = f"http://127.0.0.1:{self.port}/v1"
        return OpenAIChat(ChatSettings("openai", str(self.model), url, key_env="", **(given | settings)))


@pytest.fixture(scope="module")
def taught_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Starts a server of a model, or finds the one that still runs."""
    started: dict[Path, Server] = {}

    def start(model: Path) -> Server:
        if model not in started or started[model].process.poll() is not None:
            started[model] = Server(served(model, tmp_path_factory.mktemp("served")))
            started[model].wait()
        return started[model]

    yield start
    for server in started.values():
        server.stop()


def test_the_loop_through_http_and_without_it(
    taught_model: Path, serve: Callable[[Path], Server], models: Models, settings: Make, tmp_path: Path
) -> None:
    """Same model, same images: in this process and behind the server the loop goes the same way, to the byte."""
    s = settings(chat={"prompts": "mini"})
    runs, videos = {}, []

    def scorer(sample: Sample, video: Tensor) -> Scored:
        videos.append(video)
        return Scored(True, 1.0, {})

    for name, chat in (
        ("here", LocalChat(Teacher.load(taught_model), 400)), ("http", serve(taught_model).chat(price_out=10.0))
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        runs[name] = solve(chat, models, s, tmp_path / name, scorer=scorer)
        found, trace = runs[name]
        assert not found.error, found.error
        assert found.accepted is True and found.stop == "the planner sees the task complete"
        assert found.details["steps"] == [ACTION, "go to the pad"]
        assert [call["role"] for call in trace["calls"]] == [
            "planner", "verifier", "planner", "verifier", "planner"
        ]  # fmt: skip
        assert all(call["tokens_in"] > 9 and call["tokens_out"] > 5 for call in trace["calls"])
    here, http = runs["here"][1], runs["http"][1]
    for name in ("prompt_hash", "tokens_in"):
        assert [call[name] for call in here["calls"]] == [call[name] for call in http["calls"]]
    assert http["totals"]["cost"] > 0 == here["totals"]["cost"]
    assert torch.equal(*videos)


def test_a_server_that_dies_in_mid_run(
    taught_model: Path, serve: Callable[[Path], Server], models: Models, settings: Make, tmp_path: Path
) -> None:
    """Killed after the first step was accepted: the result says so, and what was made stays."""
    server, notes = serve(taught_model), []

    class Watch(list[str]):
        def append(self, line: str) -> None:
            notes.append(line)
            if "attempt 1: accept" in line:
                server.stop()

    found, trace = solve(server.chat(timeout=5.0), models, settings(chat={"prompts": "mini"}), tmp_path, notes=Watch())
    assert found.accepted is False and "the planner failed in step 2" in found.error
    assert "cannot be reached" in found.error
    assert found.details["steps"] == [ACTION] and len(trace["clips"]) == 1
    assert (tmp_path / "video.mp4").exists() and (tmp_path / trace["clips"][0]["file"]).exists()


@pytest.mark.slow
def test_the_shipped_models_run_the_loop_through_http(serve: Callable[[Path], Server], tmp_path: Path) -> None:
    """Image processing, chat format and decoding of the in-process way equal an independent implementation's."""
    s = parse_fit(["--config", "collabvr"])
    embedded, (sample,) = load_models(s), miniworld.samples("id", ["tour"], 5, 1)
    runs, videos = {}, []

    def scorer(sample: Sample, video: Tensor) -> Scored:
        videos.append(video)
        return Scored(True, 1.0, {})

    for name, chat in (("here", make_chat(s.chat, embedded.teacher)), ("http", serve(WEIGHTS / "chat").chat())):
        (tmp_path / name).mkdir()
        arguments = {"frames_per_second": 4, "shortest_clip": 9}
        runs[name] = solve(chat, embedded, s, tmp_path / name, sample, scorer, **arguments)
        assert not runs[name][0].error, runs[name][0].error
    here, http = runs["here"][1], runs["http"][1]
    assert len(here["clips"]) >= 2
    for part in ("verdict", "prompt", "seed"):
        assert [clip[part] for clip in here["clips"]] == [clip[part] for clip in http["clips"]]
    assert [call["tokens_in"] for call in here["calls"]] == [call["tokens_in"] for call in http["calls"]]
    assert torch.equal(*videos)

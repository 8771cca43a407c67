"""One sample -> one result folder; many samples -> one run folder that can be continued."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_sample
from tiny_fit import fit_sample
from torch import Tensor

import callbacks
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import CallbackSettings, FitSettings
from ttopt.data import find
from ttopt.data.find import find_samples, given_queries
from ttopt.data.sample import Sample
from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.methods import teacher_lora
from ttopt.models.load import CPU_TOO_SMALL, Models, load_models
from ttopt.optimization import algorithm
from ttopt.optimization.seeds import seed_of
from ttopt.record.metrics import drift
from ttopt.record.result import ACCEPTED, ALL_STEPS, NON_FINITE, Optimization, Result
from ttopt.record.run_folder import RunFolder, new_path
from ttopt.run import run as engine
from ttopt.run import tracking
from ttopt.run.console import Console
from ttopt.run.run import extra_callbacks, fit_all

Make = Callable[..., FitSettings]
MEDIA = {"video.mp4", "base.mp4", "before_after.png", "curves.png", "previews"}
FILES = MEDIA | {"curves.csv", "result.json", "config.yaml", "adapter"}


@dataclasses.dataclass(frozen=True)
class Score:
    success: bool
    partial: float
    rules: dict[str, bool]


def bright(sample: Sample, video: Tensor) -> Score:
    return Score(bool(video.mean() > 2), float(video.mean()), {"bright": False})


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Three samples with a scorer instead of the data set."""
    samples = [dataclasses.replace(tiny_sample(name), family="move", split="id") for name in "abc"]
    fake = SimpleNamespace(samples=lambda split, families, seed, limit: samples[:limit], score=bright)
    monkeypatch.setattr(find, "importlib", SimpleNamespace(import_module=lambda name: fake))
    return samples


def optimized(result: Result) -> Optimization:
    assert result.optimization is not None
    return result.optimization


def run(settings: FitSettings) -> engine.Run:
    return fit_all(settings, Console(), callbacks.standard)


def test_one_sample_makes_everything(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(optimization={"steps": 2})
    sample = tiny_sample()
    found = fit_sample(
        sample, models, s, tmp_path, queries=given_queries(s), scorer=bright, callbacks=callbacks.standard(s)
    )
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert Result.load(tmp_path) == found
    assert (found.method, found.stop, found.sample, found.prompt) == (
        "teacher_lora", ALL_STEPS, sample.id, sample.prompt,
    )  # fmt: skip
    o = optimized(found)
    assert o.steps == 2 and len(o.prediction_before.p_yes) == len(o.video_after.p_yes) == 2
    assert found.score is not None and found.score.rules == {"bright": False}
    assert found.accepted is False and o.hacked is False, "tau was never reached"
    assert o.lora_norm > 0 and 0 < o.drift["ssim"] <= 1
    # Three graded predictions, two of them with a backward pass that counts twice, and the final video of two steps.
    cost = found.cost
    assert (cost.generated_seconds, cost.reasoner_forwards, cost.vlm_calls) == (9 / 8, 3 + 2 * 2 + 2, 3)
    assert 0 < cost.wall_seconds < found.seconds["total"]
    assert found.first_frame_ssim is not None
    assert {"condition", "generate", "predict", "decode", "grade", "backward", "step", "total"} <= set(found.seconds)
    assert found.versions["torch"] == torch.__version__
    for name in ("video.mp4", "base.mp4"):
        assert read_video(tmp_path / name).shape == (9, 3, 48, 48)
    assert parse_fit(["--config", str(tmp_path / "config.yaml")]) == s


def test_accepted_at_once_gives_the_base_video(models: Models, settings: Make, tmp_path: Path) -> None:
    """The scorer does not agree: that is what hacking means."""
    s = settings(optimization={"tau": 1e9})
    videos: list[Tensor] = []

    def scorer(sample: Sample, video: Tensor) -> Score:
        videos.append(video)
        return bright(sample, video)

    found = fit_sample(tiny_sample(), models, s, tmp_path, queries=given_queries(s), scorer=scorer)
    o = optimized(found)
    assert (found.stop, o.steps, o.hacked, o.lora_norm) == (ACCEPTED, 0, True, 0) and found.accepted is True
    assert torch.equal(videos[0], videos[1])
    assert (tmp_path / "video.mp4").read_bytes() == (tmp_path / "base.mp4").read_bytes()
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "curves.png").exists()
    assert found.cost.generated_seconds == 9 / 8 and found.cost.reasoner_forwards > 1, "the one video is the method's"
    assert o.drift == {"ssim": pytest.approx(1), "psnr": 100}
    assert o.video_before == o.video_after


def test_same_seed_same_result(models: Models, settings: Make, tmp_path: Path) -> None:
    def fit(seed: int) -> Result:
        s = settings(seed=seed)
        found = fit_sample(tiny_sample(), models, s, tmp_path, queries=given_queries(s), scorer=bright)
        cost = dataclasses.replace(found.cost, wall_seconds=0)
        return dataclasses.replace(found, cost=cost, seconds={}, peak_mb={}, finished="")

    assert fit(1) == fit(1)
    assert optimized(fit(1)).video_before != optimized(fit(2)).video_before


def test_reward_can_be_replaced(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(optimization={"steps": 8, "lr": 3e-2})
    found = fit_sample(
        tiny_sample(),
        models,
        s,
        tmp_path,
        queries=given_queries(s),
        reward=lambda frames, latents: latents.square().mean().reshape(1, 1),
    )
    o = optimized(found)
    assert o.prediction_after.loss < 0.99 * o.prediction_before.loss


def test_a_reward_below_zero_is_certain(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(optimization={"steps": 1, "tau": 0.0})
    found = fit_sample(
        tiny_sample(), models, s, tmp_path, queries=given_queries(s),
        reward=lambda frames, latents: latents.mean().reshape(1, 1) - 1000,
    )  # fmt: skip
    assert found.stop == ACCEPTED and optimized(found).prediction_before.p_yes == [1.0]


def test_text_to_video(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(optimization={"steps": 1})
    found = fit_sample(tiny_sample(image=False), models, s, tmp_path, queries=given_queries(s))
    assert found.first_frame_ssim is None and found.score is None and optimized(found).hacked is None


def test_seeds_are_stable() -> None:
    assert seed_of(7, "move-1", "noise") == 450840400
    assert len({seed_of(r, s, p) for r in (0, 1) for s in ("a", "b") for p in ("noise", "adapter")}) == 8


def test_drift() -> None:
    video = torch.rand(2, 3, 32, 32)
    assert drift(video, video) == {"ssim": pytest.approx(1), "psnr": 100}
    moved = drift((video + 0.1 * torch.randn_like(video)).clamp(0, 1), video)
    assert moved["ssim"] < 1 and moved["psnr"] < 30


def test_result_survives_json_also_with_nan(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings()
    found = fit_sample(
        tiny_sample(),
        models,
        s,
        tmp_path,
        queries=given_queries(s),
        reward=lambda frames, latents: latents.mean().reshape(1, 1) * math.nan,
    )
    assert found.stop == NON_FINITE
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["optimization"]["prediction_before"]["loss"] is None
    assert math.isnan(optimized(Result.load(tmp_path)).prediction_before.loss)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Result.load(tmp_path)


# The run


def test_run_and_continue(dataset: list[Sample], settings: Make, tmp_path: Path) -> None:
    s = settings(run_dir=str(tmp_path / "run"), limit=2, optimization={"steps": 1})
    first = run(s)
    assert [r.sample for r in first.results] == ["a", "b"] and not first.problems
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "config.yaml", "results.csv", "samples"}
    before = (tmp_path / "run/samples/a/result.json").read_text()

    more = run(dataclasses.replace(s, limit=3))
    assert more.results[:2] == first.results, "finished samples are not made again"
    assert [r.sample for r in more.results] == ["a", "b", "c"]
    assert (tmp_path / "run/samples/a/result.json").read_text() == before

    (tmp_path / "run/samples/c/result.json").write_text("{}")
    again = run(s)
    assert again.results == first.results and len(again.problems) == 1, "another call's result ends nothing"
    assert "samples/c/result.json cannot be read" in again.problems[0]


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"seed": 5}, "seed was 0, now it is 5"),
        ({"optimization": {"tau": 0.5}}, "optimization.tau was 0.0, now it is 0.5"),
        ({"adapter": {"rank": 4}}, "adapter.rank was 16, now it is 4"),
    ],
)
def test_another_configuration_is_refused(changes: dict[str, Any], key: str, settings: Make, tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", settings())
    with pytest.raises(UserError, match="another configuration") as error:
        RunFolder(tmp_path / "run", settings(**changes))
    assert key in str(error.value)
    RunFolder(tmp_path / "run", settings(limit=99, logging={"previews_every": 3}))


def test_foreign_folder_and_file_are_refused(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("")
    with pytest.raises(UserError, match="is not empty and no run's folder"):
        RunFolder(tmp_path / "thesis", settings())
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="cannot write to"):
            RunFolder(path, settings())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.yaml").write_text("][")
    with pytest.raises(UserError, match="cannot be read as a run's configuration"):
        RunFolder(tmp_path / "broken", settings())


def test_sample_folder_is_complete_or_absent(settings: Make, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", settings())
    with pytest.raises(KeyboardInterrupt), folder.sample("a") as working:
        (working / "video.mp4").write_text("half")
        raise KeyboardInterrupt
    assert list(folder.samples.iterdir()) == []
    assert folder.finished("a") is None


def test_new_path_is_new(tmp_path: Path) -> None:
    first = new_path(tmp_path)
    first.mkdir()
    assert new_path(tmp_path) != first


def test_one_bad_sample_does_not_stop_the_others(
    dataset: list[Sample], settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = teacher_lora.fit_sample

    def fit(sample: Sample, *args: Any, **kwargs: Any) -> Result:
        if sample.id == "a":
            raise UserError("the teacher's reply is no JSON")
        return real(sample, *args, **kwargs)

    monkeypatch.setattr(teacher_lora, "fit_sample", fit)
    found = run(settings(run_dir=str(tmp_path / "run"), limit=2, optimization={"steps": 1}))
    assert [r.sample for r in found.results] == ["b"]
    assert found.problems == ["sample a: the teacher's reply is no JSON"]


@pytest.mark.parametrize("count", [1, 2])
def test_any_error_fails_its_sample_alone_and_leaves_its_traceback(
    dataset: list[Sample], settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int
) -> None:
    real = algorithm.prepare

    def prepare(sample: Sample, *args: Any) -> Any:
        if sample.id == "a":
            raise KeyError("no such thing")
        return real(sample, *args)

    monkeypatch.setattr(algorithm, "prepare", prepare)
    monkeypatch.setattr(teacher_lora, "prepare", prepare)
    place = tmp_path / "run"
    found = run(settings(run_dir=str(place), limit=3, batch_samples=count, optimization={"steps": 1}))
    assert sorted(r.sample for r in found.results) == ["b", "c"]
    assert found.problems == [f"sample a: KeyError: 'no such thing' (the traceback is in {place / 'errors' / 'a.txt'})"]
    assert "in prepare" in (place / "errors/a.txt").read_text()
    assert sorted(path.name for path in (place / "samples").iterdir()) == ["b", "c"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_video_with_nan_fails_its_sample_alone(
    dataset: list[Sample], settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int
) -> None:
    real, seen = algorithm.render, []

    def render(*args: Any, **options: Any) -> dict[str, Tensor]:
        videos = real(*args, **options)
        if not seen:
            videos["adapter"][0, 2] = math.nan
        seen.append(1)
        return videos

    monkeypatch.setattr(algorithm, "render", render)
    found = run(settings(run_dir=str(tmp_path / "run"), limit=2, batch_samples=count, optimization={"steps": 1}))
    assert [r.sample for r in found.results] == ["b"]
    (problem,) = found.problems
    assert problem.startswith("sample a: the video holds numbers that are not finite; give --reasoner.dtype")


def test_too_little_memory_on_the_cpu_is_tried_again_and_named(
    dataset: list[Sample], settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries = []

    def full(*args: Any, **options: Any) -> Any:
        tries.append(1)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 549755813888 bytes")

    monkeypatch.setattr(algorithm, "train", full)
    found = run(settings(run_dir=str(tmp_path / "run"), limit=1))
    assert len(tries) == 2, "once more, with everything recomputed"
    assert found.problems == [f"sample a: {CPU_TOO_SMALL}"]


def test_full_disk_stops_the_run_and_loses_nothing(
    dataset: list[Sample], settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s = settings(run_dir=str(tmp_path / "run"), limit=1, optimization={"steps": 1})
    run(s)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ttopt.record.finish.write_video", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(dataclasses.replace(s, limit=3))
    assert [path.name for path in (tmp_path / "run/samples").iterdir()] == ["a"]


def test_nan_is_reported_and_the_others_go_on(
    dataset: list[Sample], settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: Any, frames: Tensor, latents: Tensor | None = None) -> Tensor:
        return frames.mean().reshape(1, 1) * math.nan

    monkeypatch.setattr("ttopt.optimization.algorithm.TeacherReward.__call__", broken)
    found = run(settings(run_dir=str(tmp_path / "run"), limit=2))
    assert [r.stop for r in found.results] == [NON_FINITE, NON_FINITE]
    assert "the loss became NaN or infinite; the best adapter before, that of step 0, is kept" in found.problems[0]
    assert "lower --optimization.lr" in found.problems[0]


def test_own_sample(settings: Make, tmp_path: Path) -> None:
    from ttopt.data.images import write_image

    write_image(tmp_path / "x.png", torch.rand(3, 60, 90))
    samples, scorer = find_samples(settings(sample={"prompt": "go", "image": str(tmp_path / "x.png")}))
    assert scorer is None and samples[0].image is not None and samples[0].image.shape == (3, 48, 48)


def test_more_frames_than_the_data_set_has(dataset: list[Sample], settings: Make) -> None:
    with pytest.raises(UserError, match="only 9 frames; give --teacher.frames 9 or fewer"):
        find_samples(settings(teacher={"frames": 10}))


@pytest.mark.parametrize(
    "part, setting", [("reasoner", "reasoner.model"), ("decoder", "decoder.model"), ("teacher", "teacher.model")]
)
def test_missing_weights(
    part: str, setting: str, settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ttopt.models.load.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=f"embedded weights are missing .* give --{setting}"):
        load_models(settings(**{part: {"model": "embedded"}}))
    with pytest.raises(UserError, match="nowhere"):
        load_models(settings(**{part: {"model": str(tmp_path / "nowhere")}}))


@pytest.mark.parametrize("device", ["toaster", "cuda:99"])
def test_missing_device(device: str, settings: Make) -> None:
    with pytest.raises(UserError, match="give"):
        load_models(settings(teacher={"device": device}))


def test_own_callbacks() -> None:
    settings = parse_fit(["--callbacks", "[{path: callbacks.Previews, arguments: {every: 3}}]"])
    (made,) = extra_callbacks(settings.callbacks)
    assert isinstance(made, callbacks.Previews) and made.every == 3
    for path, arguments in (
        ("callbacks.Absent", {}),
        ("nowhere.At", {}),
        ("Plain", {}),
        ("callbacks.Previews", {"evry": 3}),
    ):
        with pytest.raises(UserError, match="cannot be made"):
            extra_callbacks([CallbackSettings(path, arguments)])


# W&B


def test_wandb_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tracking.wandb_mode("auto") == "offline"
    assert tracking.wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert tracking.wandb_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.wandb_mode("auto") == "disabled"


def test_one_offline_wandb_run_per_sample(dataset: list[Sample], settings: Make, tmp_path: Path) -> None:
    found = run(
        settings(run_dir=str(tmp_path / "run"), limit=2, optimization={"steps": 1}, logging={"wandb": "offline"})
    )
    assert len(found.results) == 2
    runs = list((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    media = {
        path.name.split("_")[0] for path in (tmp_path / "run/wandb").glob("offline-run-*/files/media/videos/*.mp4")
    }
    assert media == {"base", "video"}


def test_wandb_without_a_connection_goes_offline_once(
    settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import wandb

    modes: list[str] = []
    real = wandb.init

    def init(**kwargs: Any) -> Any:
        modes.append(kwargs["mode"])
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("no route to host")
        return real(**kwargs)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(tracking, "_no_connection", [])
    notes: list[str] = []
    for _ in range(2):
        with tracking.wandb_run(settings(logging={"wandb": "online"}), "a", tmp_path, notes.append) as logger:
            assert logger is not None
    assert modes == ["online", "offline", "offline"]
    assert len(notes) == 1 and "W&B cannot be reached" in notes[0]

"""The optimization loop: its order, what it keeps, and what it must never touch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_fit import fit, prepare, toward
from torch import Tensor

from callbacks import LossThreshold
from ttopt.config.settings import AdapterSettings, DecoderSettings, FitSettings, ReasonerSettings, TeacherSettings
from ttopt.data.video import sample_frames
from ttopt.models.load import Models, load_models
from ttopt.models.reasoner import LightDecoder
from ttopt.optimization import training as heart
from ttopt.record.result import ACCEPTED, ALL_STEPS, NON_FINITE


@pytest.mark.parametrize(
    "count, total, wanted", [(3, 9, [0, 4, 8]), (9, 9, list(range(9))), (1, 9, [0]), (4, 9, [0, 3, 5, 8])]
)
def test_sample_frames(count: int, total: int, wanted: list[int]) -> None:
    assert sample_frames(count, total) == wanted


def test_all_steps_are_taken_and_the_last_weights_graded(models: Models, tmp_path: Path) -> None:
    module = fit(prepare(models, steps=3), tmp_path, LossThreshold(0.0))
    assert (module.rows[0].stop, module.global_step) == (ALL_STEPS, 3)
    assert [grade.step for grade in module.rows[0].grades] == [0, 1, 2, 3]
    losses, total = module.evaluate()
    assert module.rows[0].kept == heart.Grade(3, total.item(), tuple(losses[0].tolist()))


def test_kept_weights_reproduce_the_accepted_loss(models: Models, tmp_path: Path) -> None:
    target = torch.zeros_like(prepare(models).z1)
    free = fit(prepare(models, reward=toward(target), steps=6), tmp_path)
    totals = [grade.total for grade in free.rows[0].grades]
    assert totals[3] < totals[2] < totals[0]
    tau = (totals[2] + totals[3]) / 2
    module = fit(prepare(models, reward=toward(target), steps=6), tmp_path, LossThreshold(tau))
    assert (module.rows[0].stop, module.global_step, module.rows[0].kept.step) == (ACCEPTED, 3, 3)
    assert [grade.total for grade in module.rows[0].grades] == totals[:4]
    assert module.evaluate()[1].item() == module.rows[0].kept.total == totals[3], (
        "one step more would give another loss"
    )


def test_adapting_late_blocks_computes_the_early_ones_once(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = FitSettings(
        reasoner=ReasonerSettings(model=str(folders["reasoner"])),
        decoder=DecoderSettings(model=str(folders["light"])),
        teacher=TeacherSettings(model=str(folders["teacher"])),
        adapter=AdapterSettings(blocks="2-2"),
    )
    models = load_models(settings)
    ran: list[int] = []
    for number, block in enumerate(models.reasoner.transformer.blocks):
        block.ffn.register_forward_hook(lambda *_, number=number: ran.append(number))
    module = fit(prepare(models, steps=3), tmp_path)
    assert ran == [0, 1, 2, 2, 2, 2]
    module._prefix = None
    assert module.evaluate()[1].item() == module.rows[0].kept.total
    assert ran[-3:] == [0, 1, 2]


def test_accepted_at_once_leaves_the_adapter_at_zero(models: Models, tmp_path: Path) -> None:
    module = fit(prepare(models), tmp_path, LossThreshold(1e9))
    assert (module.rows[0].stop, module.global_step, models.adapter.norm()) == (ACCEPTED, 0, 0.0)


def test_satisfied_by_the_last_step_is_accepted(models: Models, tmp_path: Path) -> None:
    target = torch.zeros_like(prepare(models).z1)
    free = fit(prepare(models, reward=toward(target), steps=3), tmp_path)
    totals = [grade.total for grade in free.rows[0].grades]
    assert free.rows[0].stop == ALL_STEPS and totals[3] < totals[2]
    module = fit(prepare(models, reward=toward(target), steps=3), tmp_path, LossThreshold((totals[2] + totals[3]) / 2))
    assert (module.rows[0].stop, module.rows[0].kept.step, module.rows[0].kept.total) == (ACCEPTED, 3, totals[3])


def test_oracle_loss_falls(models: Models, tmp_path: Path) -> None:
    module = prepare(models, steps=12, lr=3e-2)
    module.frozen = heart.Frozen(models.reasoner, models.decoder, toward(torch.zeros_like(module.z1)))
    fit(module, tmp_path)
    assert module.rows[0].kept.total < 0.98 * module.rows[0].grades[0].total


@pytest.mark.parametrize("denoise_step", ["first", "last", "all"])
def test_denoise_step(models: Models, denoise_step: str, tmp_path: Path) -> None:
    """What is graded: the one-step prediction, or for "last" and "all" the latents of the few-step video."""
    module = prepare(models, denoise_step=denoise_step, reward=toward(torch.zeros(1)), steps=2)
    predicted = module.predict()
    generated = models.reasoner.generate(module.z1, module.condition)
    one_step = models.reasoner.predict_clean(module.z1, 1.0, module.condition)
    assert torch.allclose(predicted, one_step if denoise_step == "first" else generated, atol=1e-5)
    fit(module, tmp_path)
    assert module.rows[0].kept.total < module.rows[0].grades[0].total


def test_frozen_weights_are_untouched(models: Models, tmp_path: Path) -> None:
    networks = [
        models.reasoner.transformer,
        models.reasoner.vae,
        models.reasoner.text_encoder,
        models.reasoner.light_decoder,
        models.teacher.model,
    ]
    lora = {id(parameter) for parameter in models.adapter.parameters()}

    def frozen() -> list[Tensor]:
        tensors = [t for net in networks for t in (*net.parameters(), *net.buffers())]  # type: ignore[union-attr]
        return [t for t in tensors if id(t) not in lora]

    before, copies = frozen(), [t.clone() for t in frozen()]
    module = fit(prepare(models), tmp_path)
    assert models.adapter.norm() > 0
    assert [id(t) for t in frozen()] == [id(t) for t in before]
    assert all(torch.equal(t, copy) for t, copy in zip(before, copies))
    assert all(t.grad is None and not t.requires_grad for t in before)
    assert [id(p) for p in module.parameters()] == [id(p) for p in models.adapter.parameters()]
    assert not any(net.training for net in networks)  # type: ignore[union-attr]


def test_same_seed_same_result(models: Models, tmp_path: Path) -> None:
    first, second, other = (fit(prepare(models, seed=seed), tmp_path).rows[0].grades for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_zero_adapter_is_the_base_model(models: Models) -> None:
    module = prepare(models)
    with models.adapter.disabled():
        base = models.reasoner.generate(module.z1, module.condition)
    assert torch.equal(models.reasoner.generate(module.z1, module.condition), base)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when", [0, 2, 3])
def test_non_finite_loss_keeps_the_best_weights(models: Models, bad: float, when: int, tmp_path: Path) -> None:
    """Also when only the weights after the last step (3) are bad."""
    calls: list[Tensor] = []

    def reward(frames: Tensor, latents: Tensor) -> Tensor:
        calls.append(latents.detach())
        loss = latents.square().mean().reshape(1, 1)
        return loss * bad if len(calls) == when + 1 else loss

    module = fit(prepare(models, reward=reward, steps=3), tmp_path, LossThreshold(0.0))
    assert module.rows[0].stop == NON_FINITE
    assert module.rows[0].kept.step == max(when - 1, 0)
    if when:
        assert torch.equal(module.predict(), calls[when - 1])
    assert all(parameter.isfinite().all() for parameter in module.lora)


def test_non_finite_gradient_is_noticed(models: Models, tmp_path: Path) -> None:
    def reward(frames: Tensor, latents: Tensor) -> Tensor:
        return (latents.square().mean() * 0).sqrt().reshape(1, 1)  # loss 0, gradient NaN

    module = fit(prepare(models, reward=reward), tmp_path)
    assert (module.rows[0].stop, module.rows[0].kept.step, models.adapter.norm()) == (NON_FINITE, 0, 0.0)


def test_parts_are_timed(models: Models, tmp_path: Path) -> None:
    module = fit(prepare(models), tmp_path)
    seconds, peak = module.timer.seconds(), module.timer.peak_mb()
    assert set(seconds) == set(peak) == {"predict", "decode", "grade", "backward", "step"}
    assert all(value > 0 for value in (*seconds.values(), *peak.values()))


@pytest.mark.parametrize("decoder", ["light", "standard"])
def test_gradient_of_the_whole_chain(folders: dict[str, Path], decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reasoner, decoder, teacher, reward in float64: autograd against central differences, at a few LoRA entries."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        models = load_models(
            FitSettings(
                reasoner=ReasonerSettings(model=str(folders["reasoner"])),
                decoder=DecoderSettings(kind=decoder, model=str(folders["light"])),  # type: ignore[arg-type]
                teacher=TeacherSettings(model=str(folders["teacher"])),
            )
        )
        # The libraries cast to float32 in many places, which here must mean float64.
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        monkeypatch.setattr(torch, "float32", torch.float64)
        r = models.reasoner
        for network in (r.transformer, r.vae, r.text_encoder, models.teacher.model):
            network.double()
        if isinstance(models.decoder, LightDecoder):
            last, middle = models.decoder.double().decoder[-1], 0.5
        else:
            last, middle = models.reasoner.vae.decoder.conv_out, 0.0
        # A random decoder leaves [0,1], where the clamp's gradient is straight-through on purpose.
        last.weight.data *= 0.02 / last.weight.data.abs().max()
        last.bias.data.fill_(middle)
        module = prepare(models)
        module.z1 = module.z1.double()
        module.condition.text = module.condition.text.double()
        torch.manual_seed(0)
        for parameter in module.lora:
            parameter.data = torch.randn_like(parameter) * 0.1
        module.losses()[1].sum().backward()
        assert module.rows[0].frames is not None
        assert float(module.rows[0].frames.min()) > 0 and float(module.rows[0].frames.max()) < 1
        entries = [(p, int(p.grad.abs().argmax())) for p in list(module.lora)[::7]]  # type: ignore[union-attr]
        for parameter, index in entries:
            step, flat = 1e-5, parameter.data.view(-1)
            value = flat[index].item()
            flat[index] = value + step
            above = module.evaluate()[1].item()
            flat[index] = value - step
            below = module.evaluate()[1].item()
            flat[index] = value
            assert parameter.grad is not None
            assert parameter.grad.view(-1)[index].item() == pytest.approx((above - below) / (2 * step), rel=1e-3)
    finally:
        torch.set_default_dtype(usual)  # torch.float32 means float64 until monkeypatch has undone it

"""Pretrained pipelines: small ones that diffusers saved in a folder must do here what they do there."""

from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from kdbench.errors import JobError, UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks import lora
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.networks.build import load_denoiser, save_denoiser
from kdbench.tracks.diffusion.networks.hub import load, open_pretrained
from kdbench.tracks.diffusion.networks.tabulated import Tabulated
from kdbench.tracks.diffusion.processes import Edm, process_from
from kdbench.tracks.diffusion.samplers.solvers import euler_step
from tests.helpers.pipelines import N, hub, pipelines, pixel_unet, saved, table

diffusers = pytest.importorskip("diffusers")
TEXTS = ["a cat", "red dog sky"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Saved pipelines: ``sd`` and ``sdxl``."""
    return pipelines(tmp_path_factory.mktemp("pipelines"))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the process ------------------------------------------------------------------------------------------------------


def test_a_table_of_noise_is_that_of_the_scheduler():
    products = table().alphas_cumprod
    process = Tabulated(tuple(products.double().tolist()))
    t = (torch.arange(N) + 1) / N
    torch.testing.assert_close(process.alpha(t) ** 2, products)
    torch.testing.assert_close(process.sigma(t) ** 2, 1 - products)
    torch.testing.assert_close(process.step(t), torch.arange(float(N)), atol=1e-5, rtol=0)
    assert float(process.alpha(0.0)) == 1
    assert float(process.sigma(0.0)) == 0
    fine = torch.linspace(0.003, 1, 117, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(fine) ** 2 + process.sigma(fine) ** 2, torch.ones_like(fine))
    assert (process.level(fine).diff() > 0).all()
    torch.testing.assert_close(process.time(process.level(fine)), fine)
    between = process.alpha(torch.tensor(3.5 / N)).log()
    torch.testing.assert_close(between, (process.alpha(3 / N).log() + process.alpha(4 / N).log()).float() / 2)
    drawn = process.training_times(500, torch.Generator().manual_seed(0)) * N
    assert sorted(set(drawn.round().int().tolist())) == list(range(1, N + 1))
    assert process_from(process.state()) == process
    for wrong in ((), (0.9, 0.95), (1.0, 0.5), (0.5, -0.1)):
        with pytest.raises(UsageError):
            Tabulated(wrong)


# --- pixel models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_pixel_model_predicts_what_its_scheduler_derives(tmp_path, prediction):
    unet, scheduler = pixel_unet(), table(prediction)
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    model = load(hub(tmp_path))
    scheduler.set_timesteps(N)
    x = noise(2, 3, 8, 8)
    for k in (0, 7, N - 1):
        with torch.no_grad():
            out = unet(x, k).sample
            found = model(x, (k + 1) / N)
        torch.testing.assert_close(
            found, scheduler.step(out, k, x).pred_original_sample, atol=1e-4 * found.abs().max().item(), rtol=1e-4
        )
    assert model.shape == (3, 8, 8)
    assert not model.training


def test_zero_terminal_signal_is_no_trouble_for_models_of_the_velocity(tmp_path):
    scheduler = table("v_prediction", rescale_betas_zero_snr=True)
    model = load(hub(saved(tmp_path, pixel_unet(), scheduler)))
    assert float(scheduler.alphas_cumprod[-1]) == 0
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x, 1.0), -model.net.unet(x, N - 1).sample)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_checkpoint_samples_as_its_scheduler_does(tmp_path, prediction):
    unet = pixel_unet()
    scheduler = diffusers.EDMEulerScheduler(0.01, 30.0, 0.4, prediction_type=prediction)
    model = load(hub(saved(tmp_path, unet, scheduler)))
    assert model.process == Edm(sigma_min=0.01, sigma_max=30.0, data_std=0.4)
    scheduler.set_timesteps(4)
    x = ours = 30 * noise(2, 3, 8, 8)
    sigmas = scheduler.sigmas.tolist()
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            stepped = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x)
            torch.testing.assert_close(model(x, sigmas[step]), stepped.pred_original_sample, atol=1e-4, rtol=1e-4)
            ours = euler_step(model, ours, sigmas[step], sigmas[step + 1], Condition.none(2))
            x = stepped.prev_sample
    torch.testing.assert_close(ours, x, atol=1e-3, rtol=1e-3)


def test_classes_are_tokens_from_one(tmp_path):
    unet = pixel_unet(num_class_embeds=3)
    model = load(hub(saved(tmp_path, unet, table())))
    x, classes = noise(3, 3, 8, 8), torch.tensor([0, 2, 1])
    with torch.no_grad():
        asked = model.net(x, torch.full((3,), 4.0), Condition.of_tokens(classes + 1))
        torch.testing.assert_close(asked, unet(x, 4, classes).sample)
    with pytest.raises(UsageError, match="no null condition"):
        model(x, 0.5)
    with pytest.raises(UsageError, match="no null condition"):
        guided(model, x, 0.5, Condition.of_tokens(classes + 1), 2.0)


def test_a_learned_variance_is_left_out_and_an_image_beside_the_state_read(tmp_path):
    unet = pixel_unet(out_channels=6)
    model = load(hub(saved(tmp_path / "variance", unet, table("sample"))))
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x, 0.5), unet(x, 9).sample[:, :3])
    unet = pixel_unet(in_channels=5)
    model = load(hub(saved(tmp_path / "image", unet, table("sample"))))
    image = noise(2, 2, 8, 8, seed=1)
    with torch.no_grad():
        expected = unet(torch.cat([x, image], 1), 9).sample
        torch.testing.assert_close(model(x, 0.5, Condition(2, image=image)), expected)
    with pytest.raises(UsageError, match="an image of 2 channels"):
        model(x, 0.5)


# --- latents and texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_guided_sampling_is_that_of_the_pipeline(folders, name):
    found = open_pretrained(hub(folders[name]))
    pipeline, model = found.pipeline, found.denoiser
    pipeline.set_progress_bar_config(disable=True)
    start = noise(2, 4, 8, 8)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": start.clone()}
    expected = pipeline(TEXTS, output_type="latent", **options).images
    cond, x = found.prompts(TEXTS), start
    steps = [*pipeline.scheduler.timesteps.tolist(), -1]
    assert steps == [16, 11, 6, 1, -1]
    with torch.no_grad():
        for k, after in itertools.pairwise(steps):
            x = euler_step(model, x, (k + 1) / N, (after + 1) / N, cond, 3.0)
    torch.testing.assert_close(x, expected, atol=1e-3, rtol=1e-3)
    plain = start
    with torch.no_grad():
        for k, after in itertools.pairwise(steps):
            plain = euler_step(model, plain, (k + 1) / N, (after + 1) / N, cond)
    assert not torch.allclose(plain, expected, atol=1e-2)
    shown = pipeline(TEXTS, output_type="pt", **options).images
    torch.testing.assert_close((found.decode(x) / 2 + 0.5).clamp(0, 1), shown, atol=1e-3, rtol=1e-3)


def test_the_null_of_a_text_model_is_the_empty_text_or_zeros(folders):
    found = open_pretrained(hub(folders["sd"]))
    torch.testing.assert_close(found.prompts(TEXTS).null().embedding, found.prompts(["", ""]).embedding)
    cond = open_pretrained(hub(folders["sdxl"])).prompts(TEXTS)
    assert cond.embedding.shape == (2, 12, 32)
    assert cond.pooled.shape == (2, 16)
    assert not cond.null().embedding.any()
    assert not cond.null().pooled.any()
    torch.testing.assert_close(cond[torch.tensor([1])].embedding, cond.embedding[1:])


def test_latents_are_scaled(folders):
    found = open_pretrained(hub(folders["sd"]))
    images = noise(2, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        mean = found.pipeline.vae.encode(images).latent_dist.mean
        torch.testing.assert_close(found.encode(images), 0.3 * mean)
        torch.testing.assert_close(found.decode(found.encode(images)), found.pipeline.vae.decode(mean).sample)
    assert not torch.equal(found.encode(images, torch.Generator().manual_seed(0)), 0.3 * mean)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_denoisers_of_texts_come_back_bit_for_bit_with_their_adapters(folders, tmp_path, name):
    found = open_pretrained(hub(folders[name]))
    model, cond = deepcopy(found.denoiser), found.prompts(TEXTS)
    x, before = noise(2, 4, 8, 8), found.denoiser.state_dict()
    lora.add(model, "effect", rank=2, targets=r"attn2\.to_[kv]$", generator=torch.Generator().manual_seed(0))
    model.requires_grad_(True)
    model(x, 0.7, cond).square().mean().backward()
    learning = [key for key, p in model.named_parameters() if "effect.up" in key and p.grad.abs().sum() > 0]
    assert learning, "keys and values of cross-attention have no adapter that learns"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    save_denoiser(model, tmp_path)
    back = load_denoiser(tmp_path)
    with torch.no_grad():
        out, maps = model(x, 0.7, cond, features=True)
        assert torch.equal(back(x, 0.7, cond), out)
    assert {key: value.shape[1] for key, value in maps.items()} == model.channels
    assert back.process == model.process
    with lora.using(back, None), torch.no_grad():
        assert not torch.equal(back(x, 0.7, cond), out)
    plain = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert set(plain.state_dict()) == {key.removeprefix("net.unet.") for key in before}


def test_a_pipeline_is_written_as_a_pipeline(folders, tmp_path):
    found = open_pretrained(hub(folders["sd"]))
    with torch.no_grad():
        next(found.denoiser.parameters()).add_(0.1)
    found.save(tmp_path)
    again = open_pretrained(hub(tmp_path))
    cond, x = again.prompts(TEXTS), noise(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.denoiser(x, 0.5, cond), found.denoiser(x, 0.5, cond))


def test_half_precision_is_the_networks_own_matter(folders):
    found = open_pretrained(hub(folders["sd"], dtype="bfloat16"))
    exact = open_pretrained(hub(folders["sd"]))
    x = noise(2, 4, 8, 8)
    with torch.no_grad():
        out = found.denoiser(x, 0.5, found.prompts(TEXTS))
        close = exact.denoiser(x, 0.5, exact.prompts(TEXTS))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, close, atol=0.1, rtol=0.1)
    assert not torch.equal(out, close)


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def test_what_is_missing_or_unknown_is_said(folders, tmp_path):
    with pytest.raises(JobError, match="cannot load"):
        load(hub(tmp_path / "nothing"))
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(JobError, match="neither EDM's process nor a table"):
        load(hub(saved(tmp_path / "flow", pixel_unet(), flow)))
    (tmp_path / "other" / "unet").mkdir(parents=True)
    (tmp_path / "other" / "unet" / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    with pytest.raises(JobError, match="UNet3DConditionModel; supported are UNet2DModel"):
        load(hub(tmp_path / "other"))
    with pytest.raises(UsageError, match="reads no texts"):
        open_pretrained(hub(saved(tmp_path / "pixel", pixel_unet(), table()))).prompts(TEXTS)
    for name, cond in (("sd", Condition.none(2)), ("sdxl", Condition(2, embedding=torch.zeros(2, 12, 32)))):
        with pytest.raises(UsageError, match="Pretrained.prompts"):
            load(hub(folders[name]))(noise(2, 4, 8, 8), 0.5, cond)

"""Super-resolution of photographs: regions, patches, degradations and measures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import photos
from kdbench.tracks.diffusion.data.specs import SrData
from kdbench.tracks.diffusion.evaluate.images import psnr
from kdbench.tracks.diffusion.kinds.sr import SuperResolution
from kdbench.tracks.diffusion.networks.base import EdmDenoiser
from kdbench.tracks.diffusion.networks.build import build, load_denoiser, save_denoiser
from kdbench.tracks.diffusion.processes import Edm, Flow
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.spec import DiffusionSpec, Evaluation, UNet


def kind(tmp_path, **fields) -> SuperResolution:
    spec = DiffusionSpec(name="diffusion/sr", title="", family="sr", scale="smoke", data=SrData(**fields))
    return SuperResolution(spec, Cache(tmp_path))


@pytest.fixture(scope="module")
def sr(tmp_path_factory) -> SuperResolution:
    return kind(tmp_path_factory.mktemp("sr"), stride=16)


class Answer(Sampler):
    """Gives what it was told, in the order of the rows."""

    def __init__(self, make):
        self.make = make

    def draw(self, noise, cond, generator):
        x = self.make(noise, cond)
        return x, [x]

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, task):
        raise NotImplementedError


def asked(folder=None, **evaluation):
    spec = SimpleNamespace(evaluation=Evaluation(**evaluation))
    return SimpleNamespace(spec=spec, device=torch.device("cpu"), artifact=lambda name: folder / name)


def test_luminance_of_known_colours():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 10, 10]], dtype=np.uint8)
    assert photos.luminance(colours).tolist() == [76, 150, 29, 255, 10]


@pytest.mark.parametrize("stride", [7, 32])
def test_no_pixel_is_in_two_splits(stride):
    used = []
    for split in photos.SPLITS:
        mask = np.zeros((427, 640), dtype=bool)
        for row, column in photos.corners(427, 640, split, 32, stride):
            mask[row : row + 32, column : column + 32] = True
        used.append(mask)
    assert all(mask.any() for mask in used)
    assert np.stack(used).sum(0).max() == 1
    assert [mask.any(0).nonzero()[0][0] for mask in used] == [0, 288, 384]


def test_test_patches_do_not_overlap():
    mask = np.zeros((427, 640), dtype=int)
    for row, column in photos.corners(427, 640, "test", 32, 32):
        mask[row : row + 32, column : column + 32] += 1
    assert mask.max() == 1


def test_patches_are_parts_of_the_photographs():
    pictures = photos.photographs()
    found = photos.patches(pictures, "test", 32, 32)
    assert np.array_equal(found[0], pictures[0][:32, 384:416])
    assert np.array_equal(found[len(found) // 2], pictures[1][:32, 384:416])
    with pytest.raises(ValueError, match="do not fit"):
        photos.patches(pictures, "val", 128, 32)


def test_other_photographs_are_refused(monkeypatch):
    monkeypatch.setattr(photos, "CONTENT", "0" * 16)
    photos.photographs.cache_clear()
    with pytest.raises(UsageError, match="have the digest"):
        photos.photographs()
    photos.photographs.cache_clear()


def test_splits(sr, tmp_path):
    train, test = sr.split("train"), sr.split("test")
    assert train.x.shape[1:] == sr.shape == (1, 32, 32)
    assert train.x.abs().max() <= 1
    assert test.cond.tokens is None
    assert test.cond.image.shape == test.x.shape
    assert float((train.x - train.cond.image).std()) == pytest.approx(sr.data_std, abs=0.005)
    assert (train.x.flatten(1).std(1) > 12 / 127.5 * 0.99).all()
    again = kind(tmp_path, stride=16).split("test")
    assert torch.equal(again.x, test.x)
    assert torch.equal(again.cond.image, test.cond.image)
    few = kind(tmp_path, test=5).split("test")
    assert len(few) == 5
    with pytest.raises(UsageError, match=r"data\.test asks for 100000 patches"):
        kind(tmp_path, test=100000).split("test")


def test_larger_factors_leave_less(sr):
    x = sr.split("test").x
    peaks = [float(psnr(sr.degraded(x, f, torch.Generator().manual_seed(0)), x).mean()) for f in (2, 4, 8)]
    assert peaks[0] > peaks[1] + 1 > peaks[2] + 2


def test_teachers_see_fresh_noise_of_degradation(sr):
    batch, generator = sr.batches(), torch.Generator().manual_seed(0)
    x, cond = batch(64, generator)
    clean = kind(sr.cache.root, noise=0.0, step=0.0)
    ideal = clean.degraded(x, 8, generator)
    assert cond.image.shape == x.shape
    assert 0 < float((cond.image - ideal).abs().mean()) < 0.1
    other, _ = batch(64, generator)
    assert not torch.equal(x, other)


def test_measures_of_known_answers(sr, tmp_path):
    whole = sr.split("test")
    task = asked(tmp_path, samples=len(whole))
    plain = sr.measure(task, Answer(lambda noise, cond: cond.image)).metrics
    assert plain["psnr_gain"] == 0
    assert plain["ssim"] < 0.9
    assert plain["hf_error"] > 0.5
    near = sr.measure(task, Answer(lambda noise, cond: whole.x + 0.002))
    assert near.metrics["psnr"] == pytest.approx(60, abs=0.5)
    assert near.metrics["ssim"] > 0.99
    assert near.metrics["hf_error"] < 0.01
    assert near.metrics["fd_patch"] == pytest.approx(64 * 0.002**2, rel=0.01)
    assert plain["fd_patch"] > 1
    assert near.examples["psnr"].shape == (len(whole),)
    assert near.metrics["nfe"] == 0


def test_validation_looks_at_its_own_patches(sr):
    val = sr.split("val")
    found = sr.validate(asked(val_samples=20), Answer(lambda noise, cond: val.x[: len(noise)] + 0.02))
    assert found["psnr"] == pytest.approx(40, abs=0.5)


def test_pictures_show_what_was_given_and_made(sr):
    task, whole = asked(), sr.split("test")
    sampled = sr.samples(Answer(lambda noise, cond: cond.image), 20, "test", torch.device("cpu"))
    found = sr.pictures(task, sampled, whole.cond[:20])
    assert set(found) == {"samples.png", "trajectory.png"}
    assert found["samples.png"].info["caption"]


def test_denoisers_work_around_the_image(tmp_path):
    spec = UNet(channels=8, multipliers=(1, 2), fold=True)
    torch.manual_seed(0)
    model = build(spec, (1, 32, 32), (), 1, Edm(sigma_min=0.005, sigma_max=5.0, data_std=0.1), around=True)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    image, x, t = torch.rand(2, 1, 32, 32), torch.randn(2, 1, 32, 32), torch.tensor([0.3, 2.0])
    plain = EdmDenoiser(model.net, model.process, model.shape)
    with torch.no_grad():
        found = model(x, t, Condition(2, image=image))
        assert torch.allclose(found, image + plain(x - image, t, Condition(2, image=image)), atol=1e-6)
        assert torch.equal(found, model(x, t, Condition(2, image=image), features=True)[0])
    save_denoiser(model, tmp_path)
    again = load_denoiser(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(x, t, Condition(2, image=image)), found)
    with pytest.raises(UsageError, match="process 'edm'"):
        build(spec, (1, 32, 32), (), 1, Flow(), around=True)


def test_an_untrained_denoiser_gives_the_magnified_image_at_high_noise(sr):
    """What it is to learn is the difference alone."""
    split = sr.split("val")
    process = Edm(sigma_min=0.005, sigma_max=5.0, data_std=sr.data_std)
    model = build(UNet(channels=8, fold=True), sr.shape, (), 1, process, around=sr.around)
    with torch.no_grad():
        made = model(
            process.prior(torch.randn(split.x.shape, generator=torch.Generator().manual_seed(0))), 5.0, split.cond
        )
    assert float((made - split.cond.image).abs().mean()) < 0.05

"""Effects do what their names say, and measures of an editor tell a faithful one from one that mixes effects."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from kdbench.cache import Cache
from kdbench.errors import Diverged, TestDataError, UsageError
from kdbench.tracks.diffusion.data import digits, effects
from kdbench.tracks.diffusion.data.specs import EditData
from kdbench.tracks.diffusion.evaluate.editing import bleeding, leak
from kdbench.tracks.diffusion.kinds.edit import HIGHEST, Edit
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.spec import DiffusionSpec, Evaluation
from kdbench.tracks.diffusion.task import DiffusionTask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def x():
    return digits.images(16)[0][:12]


# --- effects ----------------------------------------------------------------------------------------------------------


def test_every_effect_keeps_shape_and_range_and_no_two_are_alike(x):
    made = {name: effects.apply(name, x) for name in effects.EFFECTS}
    for image in made.values():
        assert image.shape == x.shape
        assert float(image.min()) >= -1 - 1e-6
        assert float(image.max()) <= 1 + 1e-6
    names = list(made)
    for number, name in enumerate(names):
        for other in names[:number]:
            assert (made[name] - made[other]).square().mean() > 1e-3, (name, other)


@pytest.mark.parametrize(("name", "times"), [("keep", 1), ("invert", 2), ("mirror", 2), ("flip", 2), ("rotate", 4)])
def test_some_effects_undo_themselves(name, times, x):
    y = x
    for _ in range(times):
        y = effects.apply(name, y)
    assert torch.equal(y, x)


@pytest.mark.parametrize("name", ["quantize", "dilate", "erode", "blur", "mirror"])
def test_a_plain_image_stays_plain(name):
    for value in (-1.0, 1.0):
        plain = torch.full((1, 1, 16, 16), value)
        torch.testing.assert_close(effects.apply(name, plain), plain)


def test_ink_grows_or_shrinks_as_the_name_says(x):
    for name in ("dilate", "halo", "gradient", "shadow"):
        assert (effects.apply(name, x) >= x - 1e-6).all(), name
    for name in ("erode", "checker", "stripes"):
        assert (effects.apply(name, x) <= x + 1e-6).all(), name


def test_single_effects_on_a_dot():
    dot = torch.full((1, 1, 16, 16), -1.0)
    dot[0, 0, 4, 6] = 1.0

    def ink(name):
        return {tuple(place) for place in (effects.apply(name, dot)[0, 0] > -0.9).nonzero().tolist()}

    square = {(y, x) for y in (3, 4, 5) for x in (5, 6, 7)}
    assert ink("dilate") == ink("edge") == square
    assert ink("erode") == set()
    assert ink("mirror") == {(4, 9)}
    assert ink("flip") == {(11, 6)}
    assert ink("rotate") == {(9, 4)}
    assert ink("shadow") == {(4, 6), (6, 8)}
    assert len(ink("halo")) == 1 + 25 - 9
    assert effects.apply("quantize", 0.3 * dot).unique().tolist() == [0.0]
    assert max(place[1] for place in ink("shear")) > 6
    assert float(effects.apply("blur", dot).double().sum()) == pytest.approx(2 - 256, rel=1e-5)


def test_each_image_gets_the_effect_that_it_is_asked_for(x):
    which = torch.arange(12) % 3
    made = effects.apply_each(("keep", "invert", "mirror"), which, x)
    for number, name in enumerate(("keep", "invert", "mirror")):
        assert torch.equal(made[which == number], effects.apply(name, x[which == number]))
    with pytest.raises(UsageError, match="dilate"):
        effects.apply("dilat", x)


# --- measures ---------------------------------------------------------------------------------------------------------


def test_a_leak_is_how_far_an_output_goes_to_the_other_target(x):
    own, other = effects.apply("blur", x), effects.apply("invert", x)
    for share in (0.0, 0.25, 1.0):
        found = leak(torch.lerp(own, other, share), own, other)
        torch.testing.assert_close(found, torch.full_like(found, share), atol=1e-6, rtol=0)
    assert leak(x, own, own.clone()).isnan().all()


def test_independent_errors_do_not_bleed(x):
    own = effects.apply("blur", x)
    others = [effects.apply(name, x) for name in ("invert", "mirror", "quantize")]
    noise = 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert bleeding(own, own, others) == pytest.approx(0, abs=1e-6)
    assert bleeding(own + noise, own, others) < 0.05
    assert bleeding(torch.lerp(own, others[0], 0.6), own, others) > 0.2
    assert math.isnan(bleeding(own, own, []))


class Editor(Sampler):
    """What a function of conditions gives."""

    def __init__(self, make):
        self.make = make

    def draw(self, noise, cond, generator):
        x = self.make(cond)
        return x, [noise, x]

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, task):
        raise NotImplementedError


@pytest.fixture
def task(tmp_path):
    spec = DiffusionSpec(
        name="diffusion/test-edit",
        title="Edit",
        family="edit",
        scale="smoke",
        data=EditData(train=60, val=40, test=120),
        evaluation=Evaluation(samples=120, val_samples=40, grid=6),
    )
    return DiffusionTask(spec, seed=0, method="x", folder=tmp_path, cache=Cache(tmp_path / "cache"))


def perfect(task):
    names = task.kind.instructions
    return Editor(lambda cond: effects.apply_each(names, cond.tokens[:, 0] - 1, cond.image))


def test_targets_are_the_effects_of_their_sources(task):
    assert isinstance(task.kind, Edit)
    split = task.split("train")
    names = task.kind.instructions
    for image, source, (word, tag) in zip(split.x, split.cond.image, split.cond.tokens.tolist(), strict=True):
        assert tag == 0
        torch.testing.assert_close(image, effects.apply(names[word - 1], source[None])[0])
    seen = {names[word - 1] for word in split.cond.tokens[:, 0].tolist()}
    assert not seen & set(task.spec.data.unseen)
    assert task.kind.vocabulary == (17, 17)


def test_sources_of_splits_are_different_digits(task):
    def sources(name):
        return {tuple(image.flatten().tolist()) for image in task.kind.split(name).cond.image}

    assert not sources("train") & sources("test")
    assert not sources("val") & sources("test")


def test_a_perfect_editor_has_the_highest_scores_and_does_not_bleed(task):
    task.phase = "evaluate"
    scores = task.kind.measure(task, perfect(task))
    assert scores.metrics["psnr"] == scores.metrics["fidelity"] == HIGHEST
    assert scores.metrics["ssim"] == pytest.approx(1)
    assert scores.metrics["bleeding"] == pytest.approx(0, abs=1e-6)
    table = json.loads(task.artifact("effects.json").read_text())
    assert set(table) == set(task.spec.data.effects)
    assert "exact target" in task.artifact("results.txt").read_text()
    assert task.artifact("trajectory.png").exists()


def test_an_editor_that_does_nothing_is_faithful_to_keep_alone_and_bleeds_towards_it(task):
    task.phase = "evaluate"
    scores = task.kind.measure(task, Editor(lambda cond: cond.image))
    table = json.loads(task.artifact("effects.json").read_text())
    assert table["keep"] == pytest.approx({"fidelity": HIGHEST, "bleeding": 0.0}, abs=1e-6)
    assert table["invert"]["fidelity"] < 10
    assert table["invert"]["bleeding"] > 0.1
    assert scores.metrics["psnr"] < 25
    with pytest.raises(Diverged):
        task.validate(Editor(lambda cond: cond.image * torch.nan))


def test_examples_of_an_effect_are_always_the_same_and_test_digits_are_for_evaluation(task):
    first, again = (task.kind.effect(task, "halo", count=5) for _ in range(2))
    assert torch.equal(first.x, again.x)
    torch.testing.assert_close(first.x, effects.apply("halo", first.cond.image))
    assert first.cond.tokens.tolist() == [[task.kind.instructions.index("halo") + 1, 0]] * 5
    assert task.kind.tokens("blur", 1, tag="halo").tolist() == [[4, 14]]
    with pytest.raises(TestDataError):
        task.kind.effect(task, "halo", "test")
    with pytest.raises(UsageError, match="halo"):
        task.kind.tokens("hallo", 1)


def test_effects_that_there_are_not_are_refused(task):
    with pytest.raises(ValueError, match="once"):
        EditData(effects=("blur", "blur"))
    wrong = task.spec.model_copy(update={"data": EditData(effects=("blur", "blurr"))})
    with pytest.raises(UsageError, match="blurr"):
        _ = Edit(wrong, task.cache).instructions
    assert SimpleNamespace(**task.kind.validate(task, perfect(task))).psnr == HIGHEST

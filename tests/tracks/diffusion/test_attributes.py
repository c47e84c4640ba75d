"""Digits look as their prompt says, concepts are new, and classifiers can read both."""

from __future__ import annotations

import pytest
import torch

from kdbench.cache import Cache
from kdbench.errors import TestDataError, UsageError
from kdbench.tracks.diffusion.data import attributes, digits
from kdbench.tracks.diffusion.data.attributes import Concept, describe, random_prompts, render, vocabulary
from kdbench.tracks.diffusion.data.specs import AttributesData, Judges
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.spec import DiffusionSpec, Evaluation
from kdbench.tracks.diffusion.task import DiffusionTask

CPU = torch.device("cpu")
PLAIN = [1, 2, 2, 1, 1, 1]
"""A regular upright digit, top left, in light ink on a plain ground."""


def drawn(ink, *changes):
    """The glyphs, rendered once with each change of the plain prompt: pairs of slot and token."""
    tokens = torch.tensor([PLAIN])
    for slot, token in changes:
        tokens[0, slot] = token
    return render(ink, tokens.expand(len(ink), 6))


@pytest.fixture(scope="module")
def ink():
    return digits.glyphs()[0][:40]


def middle(images):
    """(N, 2) centre of ink, x and y in pixels, of light images."""
    weight = (images[:, 0] + attributes.INK).clamp(min=0)
    weight = weight / weight.sum((1, 2), keepdim=True)
    places = torch.arange(attributes.SIZE) + 0.5
    return torch.stack([(weight.sum(1) * places).sum(1), (weight.sum(2) * places).sum(1)], dim=1)


# --- rendering --------------------------------------------------------------------------------------------------------


def test_images_are_within_range_and_depend_on_every_attribute(ink):
    plain = drawn(ink)
    assert plain.shape == (40, 1, 16, 16)
    assert plain.abs().max() <= 0.9 + 1e-6
    for slot, words in enumerate(attributes.SLOTS.values()):
        if slot:
            images = [drawn(ink, (slot, token)) for token in range(1, len(words) + 1)]
            for number, image in enumerate(images):
                for other in images[:number]:
                    assert ((image - other).square().flatten(1).mean(1) > 1e-3).all(), (slot, number)
    assert torch.equal(drawn(ink, (0, 7)), plain)


def test_dark_ink_is_the_negative(ink):
    for background in range(1, 5):
        light, dark = (drawn(ink, (4, token), (5, background)) for token in (1, 2))
        assert torch.equal(dark, -light)


def test_strokes_grow_from_thin_to_bold(ink):
    amounts = [(drawn(ink, (1, token)) + attributes.INK).flatten(1).sum(1) for token in (1, 2, 3)]
    assert (amounts[0] < amounts[1]).all()
    assert (amounts[1] < amounts[2]).all()


def test_digits_stand_in_the_corner_that_is_named(ink):
    places = [middle(drawn(ink, (3, token))) for token in (1, 2, 3, 4)]
    for place, (x, y) in zip(places, ((-2, -2), (2, -2), (-2, 2), (2, 2)), strict=True):
        torch.testing.assert_close(place.mean(0), torch.tensor([8.0 + x, 8.0 + y]), atol=0.6, rtol=0)
    torch.testing.assert_close(places[1] - places[0], torch.tensor([4.0, 0.0]).expand(40, 2), atol=0.35, rtol=0)


def test_turned_right_is_clockwise():
    bar = torch.zeros(1, 1, 8, 8)
    bar[..., 3:5] = 1.0
    for token, lean in ((1, -1), (2, 0), (3, 1)):
        image = drawn(bar, (2, token), (3, 1))
        top, bottom = image.clone(), image.clone()
        top[..., 6:, :] = -attributes.INK
        bottom[..., :6, :] = -attributes.INK
        shift = float(middle(top)[0, 0] - middle(bottom)[0, 0])
        assert shift == pytest.approx(0, abs=0.05) if lean == 0 else shift * lean > 1


def test_backgrounds_have_their_patterns():
    empty = torch.zeros(1, 1, 8, 8)
    plain, rows, columns, checker = (drawn(empty, (5, token))[0, 0] for token in (1, 2, 3, 4))
    torch.testing.assert_close(plain, torch.full((16, 16), -0.9))
    for pattern in (rows, columns, checker):
        torch.testing.assert_close(pattern, torch.where(pattern > -0.7, -0.55, -0.9))
        assert float((pattern > -0.7).double().mean()) == 0.5
    torch.testing.assert_close(rows, rows[:, :1].expand(16, 16))
    torch.testing.assert_close(columns, rows.T)
    assert torch.equal(checker > -0.7, (rows > -0.7) ^ (columns > -0.7))


def test_a_null_attribute_cannot_be_drawn(ink):
    with pytest.raises(ValueError, match="null"):
        drawn(ink, (3, 0))


def test_prompts_are_uniform_and_are_said_in_words():
    tokens = random_prompts(torch.arange(10).repeat(300), torch.Generator().manual_seed(0))
    assert (tokens[:10, 0] == torch.arange(1, 11)).all()
    for slot, size in enumerate(vocabulary()):
        share = tokens[:, slot].bincount(minlength=size)[1:] / len(tokens)
        torch.testing.assert_close(share, torch.full_like(share, 1 / (size - 1)), atol=0.05, rtol=0)
    assert (
        describe(torch.tensor([12, 0, 1, 0, 0, 4]), ("rotated-4", "mirrored-7")) == "mirrored-7, turned left, checker"
    )
    assert vocabulary(3) == (14, 4, 4, 5, 3, 5)


# --- concepts ---------------------------------------------------------------------------------------------------------


def test_concepts_are_made_of_real_glyphs():
    ink, labels = digits.glyphs()
    real = {tuple(glyph.flatten().tolist()) for glyph in ink}
    made = {name: Concept.of(name).glyphs(ink, labels, 5, 0) for name in ("rotated-4", "mirrored-7", "composed-5-4")}
    fours = {tuple(glyph.flatten().tolist()) for glyph in ink[labels == 4]}
    assert all(tuple(glyph.rot90(-1, (-2, -1)).flatten().tolist()) in fours for glyph in made["rotated-4"])
    assert all(tuple(glyph.flip(-1).flatten().tolist()) in real for glyph in made["mirrored-7"])
    uppers = {tuple(glyph[:, :4].flatten().tolist()) for glyph in ink[labels == 5]}
    lowers = {tuple(glyph[:, 4:].flatten().tolist()) for glyph in ink[labels == 4]}
    for glyph in made["composed-5-4"]:
        assert tuple(glyph[:, :4].flatten().tolist()) in uppers
        assert tuple(glyph[:, 4:].flatten().tolist()) in lowers
    assert not any(tuple(glyph.flatten().tolist()) in real for glyphs in made.values() for glyph in glyphs)


@pytest.mark.parametrize("name", ["rotated", "rotated-4-5", "composed-4", "composed-4-4", "turned-3", "mirrored-x"])
def test_names_of_no_concept_are_refused(name):
    with pytest.raises(UsageError, match="a concept is"):
        Concept.of(name)


# --- the kind ---------------------------------------------------------------------------------------------------------


class Real(Sampler):
    """Digits of the training half, rendered as they are asked for."""

    def __init__(self, change=lambda x: x):
        self.change = change

    def draw(self, noise, cond, generator):
        ink, labels = digits.glyphs()
        rows = digits.halves(0)["train"]
        classes = labels[rows]
        chosen = [
            rows[(classes == token - 1).nonzero()[:, 0]][int(torch.randint(80, (), generator=generator))]
            for token in cond.tokens[:, 0]
        ]
        x = self.change(render(ink[torch.stack(chosen)], cond.tokens))
        return x, [noise, x]

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, task):
        raise NotImplementedError


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    spec = DiffusionSpec(
        name="diffusion/test-attributes",
        title="Attributes",
        family="attributes",
        scale="smoke",
        data=AttributesData(
            train=600,
            val=60,
            test=100,
            concepts=("rotated-4", "mirrored-7"),
            judges=Judges(steps=90, width=8, batch_size=32),
        ),
        evaluation=Evaluation(samples=60, val_samples=40, grid=3),
    )
    folder = tmp_path_factory.mktemp("attributes")
    return DiffusionTask(spec, seed=0, method="x", folder=folder, cache=Cache(folder / "cache"))


def test_splits_have_glyphs_and_prompts_of_their_own(task):
    kind = task.kind
    assert kind.vocabulary == (13, 4, 4, 5, 3, 5)
    assert kind.classes == (10, 3, 3, 4, 2, 4)
    sizes = {name: len(kind.split(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 600, "val": 60, "test": 100}
    asked = kind.conditions(500, torch.Generator().manual_seed(0)).tokens
    assert int(asked[:, 0].max()) == 10
    assert int(asked.min()) == 1
    assert len(asked.unique(dim=0)) > 400


def test_real_digits_have_what_is_asked_for_and_others_do_not(task):
    task.phase = "evaluate"
    try:
        scores = task.kind.measure(task, Real())
        mute = task.kind.measure(task, Real(lambda x: x.flip(-1)))
    finally:
        task.phase = "train"
    assert scores.metrics["accuracy/ink"] > 0.9
    assert scores.metrics["accuracy/background"] > 0.9
    assert scores.metrics["prompt_accuracy"] > 0.6
    assert mute.metrics["accuracy/position"] < 0.2 < 0.8 < scores.metrics["accuracy/position"]
    assert mute.metrics["fd"] > scores.metrics["fd"]
    assert scores.metrics["diversity"] > 0
    assert (task.folder / "artifacts" / "prompts.png").exists()


def test_a_concept_is_drawn_with_its_word_and_test_glyphs_are_for_evaluation(task):
    kind = task.kind
    first, again = (kind.concept(task, "mirrored-7", count=6) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert set(first.cond.tokens[:, 0].tolist()) == {12} == {kind.concept_token("mirrored-7")}
    assert not torch.equal(kind.concept(task, "mirrored-7", "val", 6).x, first.x)
    with pytest.raises(TestDataError):
        kind.concept(task, "mirrored-7", "test")
    with pytest.raises(TestDataError):
        kind.recognised(task, first.x, 12)
    with pytest.raises(UsageError, match="rotated-4"):
        kind.concept_token("rotated-5")


def test_concepts_are_recognised_by_a_judge_that_methods_do_not_get(task):
    task.phase = "evaluate"
    try:
        mine = task.kind.concept(task, "rotated-4", "test", 40)
        digits_ = task.kind.split("test")
        found = task.kind.recognised(task, mine.x, task.kind.concept_token("rotated-4"))
        others = task.kind.recognised(task, digits_.x, task.kind.concept_token("rotated-4"))
    finally:
        task.phase = "train"
    assert found.shape == (40,)
    assert found.mean() > 2 * others.mean()
    with pytest.raises(UsageError, match="backbones"):
        task.kind.backbone("glyphs", CPU)

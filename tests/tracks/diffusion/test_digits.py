"""Real digits: their halves, the classifiers that judge samples of them, and what is kept from methods."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.cache import Cache
from kdbench.errors import Diverged, TestDataError, UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import digits
from kdbench.tracks.diffusion.data.specs import DigitsData, Judges
from kdbench.tracks.diffusion.evaluate.classifiers import features_of, train
from kdbench.tracks.diffusion.kinds.digits import Digits
from kdbench.tracks.diffusion.samplers.base import Sampler
from kdbench.tracks.diffusion.spec import DiffusionSpec, Evaluation
from kdbench.tracks.diffusion.task import DiffusionTask

CPU = torch.device("cpu")


def spec_of(**data):
    judges = Judges(steps=50, width=8, batch_size=32)
    return DiffusionSpec(
        name="diffusion/test-digits",
        title="Digits",
        family="digits",
        scale="smoke",
        data=DigitsData(judges=judges, **data),
        evaluation=Evaluation(samples=120, val_samples=60, grid=3),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def kind(cache):
    return Digits(spec_of(), cache)


class Fixed(Sampler):
    """What a function of conditions gives."""

    def __init__(self, make):
        self.make = make

    def draw(self, noise, cond, generator):
        x = self.make(noise, cond)
        return x, [noise, x]

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, task):
        raise NotImplementedError


# --- data -------------------------------------------------------------------------------------------------------------


def test_digits_are_the_real_ones_and_larger_ones_have_the_same_ink():
    x, labels = digits.images()
    assert x.shape == (1797, 1, 8, 8)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    large = digits.images(16)[0]
    assert large.shape == (1797, 1, 16, 16)
    inside = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(inside.mean(), x.mean(), atol=2e-3, rtol=0)


def test_halves_share_no_image_and_have_all_classes_alike():
    labels, parts = digits.glyphs()[1], digits.halves(0)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 898, "val": 225, "test": 674}
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(1797))
    for rows in parts.values():
        share = labels[rows].bincount() / len(rows)
        assert (share - labels.bincount() / 1797).abs().max() < 0.005
    assert digits.halves(1)["train"].tolist() != parts["train"].tolist()


def test_a_number_of_digits_is_a_part_of_the_split():
    few = digits.rows_of("test", 0, 50)
    assert set(few.tolist()) < set(digits.halves(0)["test"].tolist())
    with pytest.raises(UsageError, match="there are 674"):
        digits.rows_of("test", 0, 675)


# --- judges -----------------------------------------------------------------------------------------------------------


def test_judges_are_trained_once_and_are_the_same_every_time(cache, kind):
    key = Digits(spec_of(), cache)
    made = kind.judge("evaluator", CPU)
    entries = len(list(cache.entries()))
    again = key.judge("evaluator", CPU)
    assert len(list(cache.entries())) == entries
    x, labels = kind.split("train").x, kind.split("train").cond.tokens - 1
    before = torch.random.get_rng_state()
    anew = train(x, labels, (10,), kind.data.judges, "evaluator")
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in made.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight, anew.state_dict()[name])


def test_a_judge_reads_digits_that_it_has_not_seen(kind):
    test = kind.split("test")
    assert float(kind.right(test.x, test.cond.tokens, CPU).mean()) > 0.85


def test_backbones_of_methods_have_no_weight_in_common_with_the_evaluator(kind):
    evaluator = {tuple(p.flatten()[:4].tolist()) for p in kind.judge("evaluator", CPU).parameters()}
    for pretext in ("labels", "rotation"):
        backbone = kind.backbone(pretext, CPU)
        mine = {tuple(p.flatten()[:4].tolist()) for name, p in backbone.named_parameters() if "norms" not in name}
        assert not mine & evaluator
        assert not any(p.requires_grad for p in backbone.parameters())
        x = kind.split("train").x[:3].clone().requires_grad_()
        sum(part.square().sum() for part in backbone.maps(x)).backward()
        assert x.grad.abs().sum() > 0
    for role in ("evaluator", "taste"):
        with pytest.raises(UsageError, match="backbones are"):
            kind.backbone(role, CPU)


def test_taste_prefers_the_digits_with_more_ink_and_dislikes_noise(kind):
    train_, reward = kind.split("train"), kind.reward(CPU, contrast=0, sharpness=0)
    pleasing = kind.pleasing().bool()
    assert 0.4 < float(pleasing.double().mean()) <= 0.5
    values = reward(train_.x)
    assert values[pleasing].mean() > values[~pleasing].mean() + 0.3
    assert reward(torch.randn_like(train_.x)).mean() < values.mean()


# --- measures ---------------------------------------------------------------------------------------------------------


def test_real_digits_are_near_the_floor_and_noise_is_not(kind):
    test, real = kind.split("test"), kind.split("train")
    found = kind.measured(real.x, real.cond, "test", CPU)
    assert found.metrics["fd"] == pytest.approx(kind.floor(CPU), rel=1e-9)
    noise = kind.measured(torch.randn_like(test.x), test.cond, "test", CPU).metrics
    assert noise["fd"] > 10 * found.metrics["fd"]
    assert noise["accuracy"] < 0.3 < 0.9 < found.metrics["accuracy"]
    assert found.metrics["precision"] > 0.8
    assert noise["precision"] < found.metrics["precision"]
    assert found.examples["accuracy"].mean() == pytest.approx(found.metrics["accuracy"])


def test_one_image_for_all_is_precise_without_recall_or_diversity(kind):
    real = kind.split("train")
    x = real.x[:1].expand(200, -1, -1, -1) + 1e-3 * torch.randn(
        200, 1, 8, 8, generator=torch.Generator().manual_seed(0)
    )
    found = kind.measured(x, real.cond[:1].repeat(200), "test", CPU).metrics
    whole = kind.measured(real.x, real.cond, "test", CPU).metrics
    assert found["recall"] < 0.05 < whole["recall"]
    assert found["diversity"] < 0.05 * whole["diversity"]


def test_wrong_classes_cost_accuracy_and_no_distance(kind):
    real = kind.split("train")
    turned = Condition.of_tokens(real.cond.tokens % 10 + 1)
    found, right = (kind.measured(real.x, cond, "test", CPU).metrics for cond in (turned, real.cond))
    assert found["fd"] == right["fd"]
    assert found["accuracy"] < 0.1


def test_null_tokens_ask_for_nothing(kind):
    real = kind.split("train")
    tokens = real.cond.tokens.clone()
    tokens[10:] = 0
    found = kind.right(real.x, tokens, CPU)
    assert found[10:].isnan().all()
    assert not found[:10].isnan().any()


def test_samples_that_are_no_numbers_are_said_to_have_diverged(kind):
    real = kind.split("train")
    with pytest.raises(Diverged):
        kind.measured(torch.full_like(real.x, torch.nan), real.cond, "test", CPU)


def test_a_score_leaves_its_numbers_and_captioned_pictures(kind, tmp_path):
    folder = tmp_path / "artifacts"
    folder.mkdir()
    task = SimpleNamespace(spec=kind.spec, device=CPU, artifact=lambda name: folder / name)
    real = kind.split("train")

    def copies(noise, cond):
        return torch.stack([real.x[(real.cond.tokens == token).all(1)][0] for token in cond.tokens])

    scores = kind.measure(task, Fixed(copies))
    assert scores.metrics["accuracy"] > 0.8
    assert scores.metrics["nfe"] == 0
    assert len(scores.examples["reward"]) == 120
    assert json.loads((folder / "samples.json").read_text()) == scores.metrics
    names = {path.name for path in folder.iterdir()}
    assert names == {"samples.json", "samples.png", "samples.txt", "trajectory.png", "trajectory.txt"}
    assert "row a class" in (folder / "samples.txt").read_text()


def test_test_digits_are_out_of_reach_in_train(cache, tmp_path):
    task = DiffusionTask(spec_of(), seed=0, method="x", folder=tmp_path, cache=cache)
    assert len(task.split("val")) == 225
    with pytest.raises(TestDataError):
        task.split("test")
    task.phase = "evaluate"
    assert len(task.split("test")) == 674


def test_features_are_the_same_in_parts(kind):
    x = kind.split("val").x[:7]
    judge = kind.judge("evaluator", CPU)
    torch.testing.assert_close(features_of(judge, x), torch.cat([judge.features(part) for part in x.split(2)]))
    assert features_of(judge, x).shape == (7, 64)

"""Selection by class-wise thresholds, mixing of styles inside the network, and a frozen classifier."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from kdbench_methods.vision import kd3 as method


def posteriors(n=40, c=4, seed=0):
    return F.softmax(2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed)), -1)


def test_thresholds_are_the_mean_confidence_of_each_predicted_class():
    probs = posteriors()
    top, predicted = probs.max(1)
    kept = method.keep(probs)
    for c in predicted.unique():
        mine = predicted == c
        assert torch.equal(kept[mine], top[mine] >= top[mine].mean() - 1e-6)
    assert 0 < kept.sum() < 40


def test_no_class_that_is_predicted_loses_all_its_images():
    probs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.8, 0.2]])
    assert method.keep(probs).tolist() == [True, True, False, False]
    assert method.keep(probs[2:]).all()


def maps(b=6, c=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(b, c, 5, 5, generator=generator) + torch.randn(b, c, 1, 1, generator=generator)


NOTHING = torch.zeros(2, 6, 3)
ORDER = torch.tensor([1, 2, 3, 4, 5, 0])


def statistics(features):
    return features.mean((2, 3)), features.std((2, 3), correction=0)


def test_mixing_nothing_is_the_identity_and_mixing_all_takes_the_style_of_the_other():
    f = maps()
    assert torch.allclose(method.mix_distribution(f, torch.ones(6), ORDER, NOTHING), f, atol=1e-5)
    assert torch.allclose(method.mix_distribution(f, torch.rand(6), torch.arange(6), NOTHING), f, atol=1e-5)
    other = statistics(method.mix_distribution(f, torch.zeros(6), ORDER, NOTHING))
    for ours, theirs in zip(other, statistics(f[ORDER]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_mixed_statistics_are_between_both_and_the_content_stays():
    f, lam = maps(), torch.full((6,), 0.3)
    made = method.mix_distribution(f, lam, ORDER, NOTHING)
    for ours, mine, theirs in zip(statistics(made), statistics(f), statistics(f[ORDER]), strict=True):
        assert torch.allclose(ours, 0.3 * mine + 0.7 * theirs, atol=1e-4)
    centred = [(each - each.mean((2, 3), keepdim=True)).flatten(2) for each in (made, f)]
    assert F.cosine_similarity(*centred, dim=2).min() > 1 - 1e-5


def test_the_perturbation_changes_statistics_alone():
    f, noise = maps(), 0.1 * torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    made = method.mix_distribution(f, torch.ones(6), ORDER, noise)
    mean, deviation = statistics(f)
    assert torch.allclose(statistics(made)[1], deviation * (1 + noise[0]), atol=1e-4)
    assert torch.allclose(statistics(made)[0], mean + noise[1] * deviation, atol=1e-4)


def test_alignment_weighs_confident_images_more_and_has_mean_weight_one():
    g = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(4, 5)
    squares = g.square().mean(1)
    assert method.alignment(g, target, torch.full((4,), 0.3)).item() == pytest.approx(squares.mean().item())
    first = method.alignment(g, target, torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert first.item() == pytest.approx(squares[0].item())


def test_the_pool_is_selected_again_with_the_student_and_the_classifier_stays(smoke, tmp_path):
    outcome = smoke("kd3", "webly", {"selections": 3})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.extra["pool_known"] == pytest.approx(0.4, abs=0.01)
    folder = tmp_path / "kd3" / "artifacts"
    masks = load_file(folder / "selection.safetensors")["masks"].bool()
    assert masks.shape == (3, 90)
    assert all(0 < mask.sum() < 90 for mask in masks)
    assert max(json.loads((folder / "selection.json").read_text())["changed_share"]) > 0


@pytest.mark.parametrize(
    ("params", "selected"),
    [({"selection": "none", "contrast": 0.0}, 1.0), ({"selection": "teacher", "share": False, "feature": 0.0}, None)],
)
def test_ablations_run(smoke, params, selected):
    outcome = smoke("kd3", "webly", params)
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["selected_first"] == outcome.extra["selected_last"]
    if selected is not None:
        assert outcome.extra["selected_first"] == selected


def test_a_student_without_feature_maps_and_a_missing_stage_are_refused(smoke):
    outcome = smoke("kd3", "webly", {"stage": 4})
    assert outcome.status == "failed"
    assert "the stages 1 to 3" in outcome.error.message

"""Token-level relationship graphs: what reduces to ordinary distillation, sampling, schedule, what evaluation adds."""

import json

import pytest
import torch
from torch import nn

from kdbench.losses.contrastive import info_nce
from kdbench.tracks.vision.models import Taps
from kdbench_methods.vision import token_relationship_graph as method

OFF = {"w_inner": 0.0, "w_local": 0.0, "w_global": 0.0}


def some(b=4, n=16, d=6, seed=0):
    return torch.randn(b, n, d, generator=torch.Generator().manual_seed(seed))


def terms(mine, theirs, project=None, tau=0.1, **changes):
    params = method.TokenRelationshipGraphParams(**changes)
    return method.relations(mine, theirs, params, project or nn.Identity(), tau, torch.Generator().manual_seed(0))


def test_without_its_terms_it_is_ordinary_distillation(smoke):
    made, plain = smoke("token_relationship_graph", "digits-gap", OFF), smoke("kd", "digits-gap")
    assert made.metrics == plain.metrics
    assert made.cost["teacher_queries"] == plain.cost["teacher_queries"]


def test_a_student_with_the_teachers_tokens_has_nothing_to_learn_but_contrast():
    made = terms(some(), some())
    assert made["inner"].item() == 0.0
    assert made["local"].item() == 0.0
    assert 0 < made["global"].item() < terms(some(seed=1), some())["global"].item()


def test_neighbours_come_from_other_images():
    """Moving one image changes the local term of a student whose tokens within each image are as they were."""
    mine, theirs = some(), some()
    far = mine.clone()
    far[0] += 50.0  # all distances within the image stay
    assert terms(far, theirs, tokens=16, sigma=1.0)["local"].item() > 1e-6


def test_positions_are_different_ones_of_each_image_and_equal_in_both_networks():
    positions = method.draw(some(8, 16), 6, torch.Generator().manual_seed(0))
    assert positions.shape == (8, 6)
    assert all(len(set(row.tolist())) == 6 for row in positions)
    assert len({tuple(row.tolist()) for row in positions}) > 1
    assert method.draw(some(2, 4), 6, torch.Generator()).shape == (2, 4)
    # equal positions: the contrast of a teacher with itself is near its least at a low temperature
    assert terms(some(), some(), tau=0.01)["global"].item() < 0.01


def test_own_neighbours_differ_from_the_teachers():
    mine, theirs = some(seed=1), some()
    assert terms(mine, theirs)["local"].item() != pytest.approx(terms(mine, theirs, neighbours="own")["local"].item())
    assert terms(theirs, theirs, neighbours="own")["local"].item() == 0.0


def test_gradients_reach_the_student_and_the_projector_alone():
    mine, theirs, project = some().requires_grad_(), some(d=9, seed=1).requires_grad_(), nn.Linear(6, 9)
    for name, term in terms(mine, theirs, project).items():
        (gradient,) = torch.autograd.grad(term, mine, retain_graph=True)
        assert gradient.abs().sum() > 0, name
    torch.stack(list(terms(mine, theirs, project).values())).sum().backward()
    assert theirs.grad is None
    assert project.weight.grad.abs().sum() > 0


def test_the_finer_grid_is_averaged_to_the_coarser():
    mine = Taps([torch.randn(2, 3, 8, 8), torch.randn(2, 5, 1, 1)], torch.zeros(2, 1), torch.zeros(2, 1))
    theirs = Taps([torch.randn(2, 16, 7)], torch.zeros(2, 1), torch.zeros(2, 1))
    one, other = method.tokens_of(mine, theirs, 2)
    assert one.shape == (2, 16, 3)
    assert torch.equal(other, theirs.stages[0])  # its only stage, though the second from the last was asked for
    torch.testing.assert_close(one[:, 0], mine.stages[0][:, :, :2, :2].mean((2, 3)))


@pytest.mark.parametrize("task", ["longtail", "hetero-rn-vit"])
def test_what_evaluation_adds(smoke, task):
    outcome = smoke("token_relationship_graph", task)
    assert outcome.status == "ok", outcome.error
    assert 0 <= outcome.extra["neighbour_overlap"] <= 1
    assert 0 <= outcome.extra["token_cka"] <= 1 + 1e-9
    assert outcome.extra["graph_cost"] > 0


def test_terms_begin_at_one_the_temperature_falls_and_the_projector_goes(smoke, tmp_path, monkeypatch):
    seen = []

    def contrast(query, key, temperature):
        seen.append(temperature)
        return info_nce(query, key, temperature)

    monkeypatch.setattr(method, "info_nce", contrast)
    outcome = smoke("token_relationship_graph", "digits-gap", {"w_local": 3.0})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["parameters"] == smoke("no_kd", "digits-gap").cost["parameters"]
    lines = (tmp_path / "token_relationship_graph" / "curve.jsonl").read_text().splitlines()
    first = next(row for row in map(json.loads, lines) if row["step"] == 1)
    assert [first[name] for name in ("inner", "local", "global")] == pytest.approx([1.0, 3.0, 1.0])
    temperatures = seen[:6]  # of the six steps; the last one is of evaluation
    assert temperatures[0] == 0.5
    assert temperatures == sorted(temperatures, reverse=True)
    assert 0.07 < temperatures[-1] < 0.12

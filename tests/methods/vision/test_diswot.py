"""DisWOT: the teacher's own score, its terms, the search under a cap, what evaluation adds."""

import json

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.vision.batches import Batch
from kdbench.tracks.vision.models import build
from kdbench_methods.vision import diswot as method


def batch(n=16, classes=5):
    g = torch.Generator().manual_seed(0)
    return Batch(
        torch.randn(n, 3, 16, 16, generator=g), torch.randint(classes, (n,), generator=g), torch.full((n,), -1)
    )


@pytest.fixture
def networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("rn(4,1)", 5), build("rn(4,2,1,1)", 5), build("rn(3,1)", 5)


@pytest.mark.parametrize("semantic", ["classes", "channels"])
def test_the_teacher_itself_has_the_maximum(networks, semantic):
    teacher, other, _ = networks
    made = method.view(teacher, batch())
    assert method.terms(method.view(teacher, batch()), made, semantic) == (0.0, 0.0)
    assert max(method.terms(method.view(other, batch()), made, semantic)) < 0


def test_terms_compare_networks_of_any_width(networks):
    teacher, _, narrow = networks
    mine, theirs = method.view(narrow, batch()), method.view(teacher, batch())
    relation, semantic = method.terms(mine, theirs)
    assert -2 / 16 < relation < 0  # rows have unit length
    assert -4 < semantic < 0
    with pytest.raises(UsageError, match="equal widths"):
        method.terms(mine, theirs, "channels")


def test_the_semantic_view_is_the_gradient_of_the_classifier(networks):
    model = networks[0]
    _, gradient = method.view(model, batch())
    loss = torch.nn.functional.cross_entropy(model.train()(batch().x), batch().y)
    (expected,) = torch.autograd.grad(loss, model.fc.weight)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert model.fc.weight.grad is None


def test_correlations_of_ranks():
    assert method.correlations([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx((1, 1))
    assert method.correlations([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx((-1, -1))
    assert method.correlations([1, 1, 1, 1], [4, 3, 2, 1]) == (0, 0)


FEW = {"evaluations": 6, "population": 3, "sample": 2, "batch": 16, "repeats": 2}


def test_search_and_ranking(smoke, tmp_path):
    outcome = smoke("diswot", "search", FEW)
    assert outcome.status == "ok", outcome.error
    made = json.loads((tmp_path / "diswot" / "artifacts" / "search.json").read_text())
    assert len(made["history"]) == 6
    assert dict(made["history"])[made["winner"]] == max(score for _, score in made["history"])
    assert len(made["table"]) == 4
    for row in made["table"].values():
        parts = row["relation"] / made["scales"][0] + row["semantic"] / made["scales"][1]
        assert row["score"] == pytest.approx(parts)
        assert row["spread"] >= 0
    assert {"kendall_tau", "spearman", "kendall_tau_vanilla", "kendall_tau_relation", "kendall_tau_semantic"} <= set(
        outcome.extra
    )
    assert outcome.cost["parameters"] == outcome.extra["found_parameters"]
    assert outcome.cost["steps"] == 6
    assert outcome.cost["search_seconds"] > 0
    assert "aux_steps" not in outcome.cost  # nothing is trained to find it


@pytest.mark.parametrize("score", ["relation", "naswot", "synflow", "parameters"])
def test_other_scores_run_through_the_same_search(smoke, score):
    outcome = smoke("diswot", "search", FEW | {"score": score, "repeats": 1, "evaluations": 3})
    assert outcome.status == "ok", outcome.error
    assert -1 <= outcome.extra["kendall_tau"] <= 1
    if score == "parameters":
        assert outcome.extra["score_noise"] == 0


def test_a_training_based_search_pays_for_its_trainings(smoke):
    outcome = smoke("diswot", "search", FEW | {"score": "trained", "proxy_steps": 2, "evaluations": 3})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["aux_steps"] >= 2 * 4  # the table's networks are scored, too


def test_the_cap_holds(smoke, tmp_path):
    outcome = smoke("diswot", "search", FEW | {"search": "random"}, {"search": {"max_parameters": 3000}})
    assert outcome.status == "ok", outcome.error
    assert outcome.extra["found_parameters"] <= 3000


def test_distances_as_a_loss(smoke, tmp_path):
    outcome = smoke("diswot", "search", FEW | {"score": "parameters", "w_relation": 10.0, "w_semantic": 1.0})
    assert outcome.status == "ok", outcome.error
    names = {
        name for line in (tmp_path / "diswot" / "curve.jsonl").read_text().splitlines() for name in json.loads(line)
    }
    assert {"relation", "semantic"} <= names


def test_a_tournament_fits_the_population(smoke):
    outcome = smoke("diswot", "search", {"population": 3, "sample": 4})
    assert outcome.status == "failed"
    assert "population of 3" in outcome.error.message

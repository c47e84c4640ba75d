"""Active distillation: strategies, query accounting, retraining from scratch. The game is tested with the selection."""

import json

import pytest
import torch
import torch.nn.functional as F

from kdbench.training.active import PoolView, TransferBatch, area, transfer_loss
from kdbench.training.selection import margin_informativeness
from kdbench_methods.vision import robust_active_distillation as method


def view(n=30, accuracy=0.7, seed=0):
    g = torch.Generator().manual_seed(seed)
    probs = F.softmax(2 * torch.randn(n, 5, generator=g), -1)
    features = torch.randn(n, 3, generator=g)
    teacher = 3 * torch.randn(n, 5, generator=g)
    asked = []

    def ask(positions):
        asked.extend(positions.tolist())
        return teacher[positions]

    made = PoolView(probs, features, features[:2], torch.arange(n), ask, accuracy, g)
    return made, teacher, asked


@pytest.mark.parametrize("strategy", [name for name in method.STRATEGIES if name != "full"])
def test_strategies_choose_different_samples(strategy):
    made, _, asked = view()
    chosen = method.STRATEGIES[strategy](made, 8)
    assert len(set(chosen.tolist())) == 8
    assert asked == (list(range(30)) if strategy == "confident-margin" else [])


def test_margin_takes_the_least_certain():
    made, _, _ = view()
    chosen = method.STRATEGIES["margin"](made, 5)
    g = margin_informativeness(made.probs)
    assert g[chosen].min() >= g.sort(descending=True).values[4]


def test_confident_margin_stays_in_the_confident_half():
    made, teacher, _ = view()
    chosen = method.STRATEGIES["confident-margin"](made, 5)
    confidence = F.softmax(teacher, -1).amax(1)
    assert confidence[chosen].min() >= confidence.median()


def test_robust_sampling_is_inverse_to_informativeness_not_the_top():
    counts = torch.zeros(30)
    for seed in range(300):
        made, _, _ = view(accuracy=0.4)
        made.generator.manual_seed(seed)
        counts[method.robust(made, 1)] += 1
    g = margin_informativeness(made.probs)
    drawn = counts > 0
    assert int(drawn.sum()) > 18  # wider than the 18 wrong labels
    most, least = g.argsort(descending=True)[:6], g[drawn].argsort()[:6]
    assert counts[drawn][least].sum() > counts[most].sum()


def test_transfer_loss_is_a_mean_over_the_batch():
    g = torch.Generator().manual_seed(0)
    logits, soft = torch.randn(2, 6, 4, generator=g)
    y = torch.tensor([0, 1, -1, -1, -1, 2])
    batch = TransferBatch(torch.zeros(6, 1), y, soft)
    hard = F.cross_entropy(logits[y >= 0], y[y >= 0], reduction="sum")
    kl = F.kl_div(F.log_softmax(logits, -1), F.softmax(soft, -1), reduction="none").sum(-1)[y < 0].sum()
    assert transfer_loss(logits, batch, 1.0).item() == pytest.approx(((hard + kl) / 6).item(), rel=1e-5)
    labels = TransferBatch(batch.x[:2], y[:2], soft[:2])
    assert transfer_loss(logits[:2], labels, 1.0).item() == pytest.approx(F.cross_entropy(logits[:2], y[:2]).item())


def test_area_is_the_mean_height():
    assert area([0, 10, 30], [0.0, 1.0, 1.0]) == pytest.approx((5 + 20) / 30)
    assert area([0], [0.4]) == 0.4


def test_rounds_queries_and_budget(smoke, tmp_path):
    outcome = smoke("robust_active_distillation", "active")
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 5 * 6
    assert outcome.cost["teacher_queries"] == 30  # the whole allowance, once per sample
    made = json.loads((tmp_path / "robust_active_distillation" / "artifacts" / "rounds.json").read_text())
    positions = [position for each in made["rounds"] for position in each["positions"]]
    assert len(positions) == len(set(positions)) == 30
    assert [each["queries"] for each in made["rounds"]] == [0, 6, 12, 18, 24, 30]
    assert 0 <= outcome.extra["query_precision"] <= 1
    assert 0 < outcome.extra["game_value"] <= 1


def test_the_allowance_cannot_be_overdrawn(smoke):
    outcome = smoke("robust_active_distillation", "active", {"batch": 7})
    assert outcome.status == "over_budget"


def test_asking_about_the_whole_pool_needs_the_allowance_for_it(smoke):
    assert smoke("robust_active_distillation", "active", {"strategy": "full"}).status == "over_budget"


def test_full_querying_is_one_round(smoke, tmp_path):
    outcome = smoke("robust_active_distillation", "active", {"strategy": "full"}, {"limits": {"teacher_queries": 90}})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["teacher_queries"] == 90
    assert outcome.cost["aux_steps"] == 6

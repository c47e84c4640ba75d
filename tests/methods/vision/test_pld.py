"""PLD as a method; its loss is tested with the ranking losses."""

import pytest
import torch
import torch.nn.functional as F

from kdbench.losses.ranking import weighted_list_loss
from kdbench_methods.vision import pld


@pytest.mark.parametrize("variant", ["pld", "listmle", "p-listmle", "ce"])
def test_every_variant_trains(smoke, variant):
    outcome = smoke("pld", "digits-gap", {"variant": variant})
    assert outcome.status == "ok", outcome.error
    assert -1 <= outcome.extra["kendall_tau_teacher"] <= 1
    assert outcome.extra["top5"] >= outcome.metrics["top1"]


def test_variants_are_different_losses_and_ce_is_cross_entropy():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 16, 10, generator=g)
    y = torch.randint(10, (16,), generator=g)
    losses = {name: weighted_list_loss(s, t, y, weighting=how).item() for name, how in pld.WEIGHTING.items()}
    assert len(set(losses.values())) == 4
    assert losses["ce"] == pytest.approx(F.cross_entropy(s, y).item(), rel=1e-6)


def test_unlabelled_samples_are_ranked_by_the_teacher_alone(smoke):
    assert smoke("pld", "digits-fewlabel").status == "ok"

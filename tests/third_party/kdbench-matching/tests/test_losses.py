"""Identities of both losses."""

import pytest
import torch
from torch.nn.functional import kl_div

from kdbench_matching.logit_mse import squared_error
from kdbench_matching.ttm import transformed_matching


def logits(seed):
    return 3 * torch.randn(16, 10, generator=torch.Generator().manual_seed(seed))


def test_at_temperature_one_matching_is_the_divergence():
    expected = kl_div(logits(0).log_softmax(-1), logits(1).log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(transformed_matching(logits(0), logits(1), 1.0), expected)


@pytest.mark.parametrize("loss", [squared_error, lambda s, t: transformed_matching(s, t, 4.0)])
def test_a_shift_of_all_logits_costs_nothing(loss):
    torch.testing.assert_close(loss(logits(0) + 5, logits(1) - 2), loss(logits(0), logits(1)))


def test_the_transformed_teacher_is_matched_and_not_the_teacher():
    assert transformed_matching(logits(1) / 4, logits(1), 4.0) == pytest.approx(0, abs=1e-6)
    assert transformed_matching(logits(1), logits(1), 4.0) > 0.1

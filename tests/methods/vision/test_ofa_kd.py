"""One-for-All: branches of every family, exponents, what evaluation adds."""

import json

import pytest

from kdbench.errors import UsageError
from kdbench_methods.vision import ofa_kd


def test_exponents_are_one_for_all_or_one_per_head():
    assert ofa_kd.exponents([1.5], 3) == ([1.5] * 3, 1.5)
    assert ofa_kd.exponents([1.0, 1.25, 1.5, 2.0], 3) == ([1.0, 1.25, 1.5], 2.0)
    with pytest.raises(UsageError, match="2 values; expected 1, or 3"):
        ofa_kd.exponents([1.0, 1.0], 3)


@pytest.mark.parametrize(
    "task", ["digits-gap", "hetero-rn-vit", "hetero-rn-mixer", "hetero-vit-rn", "hetero-mixer-vit"]
)
def test_all_families_train_and_drop_their_branches(smoke, tmp_path, task):
    outcome = smoke("ofa_kd", task, {"eps": [1.25]})
    assert outcome.status == "ok", outcome.error
    plain = smoke("no_kd", task)
    assert outcome.cost["parameters"] == plain.cost["parameters"]
    heatmap = json.loads((tmp_path / "ofa_kd" / "artifacts" / "cka.json").read_text())["cka"]
    assert all(0 <= value <= 1 + 1e-9 for row in heatmap for value in row)
    branches = [name for name in outcome.extra if name.startswith("branch")]
    assert len(branches) == len(heatmap)


def test_chosen_stages_and_one_exponent_each(smoke):
    outcome = smoke("ofa_kd", "digits-gap", {"stages": [1, 3], "eps": [1.5, 1.25, 1.0]})
    assert outcome.status == "ok", outcome.error
    assert {name for name in outcome.extra if name.startswith("branch")} == {"branch1_val_top1", "branch3_val_top1"}


def test_a_stage_that_is_not_there_is_named(smoke):
    outcome = smoke("ofa_kd", "digits-gap", {"stages": [4]})
    assert outcome.status == "failed"
    assert "stages [4] do not exist" in outcome.error.message

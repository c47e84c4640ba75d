"""ParallelBench: its curves, its theory, and that dependence is told from difficulty."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.registry import discover
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.blocks.joints import ExactPredictor, Joint, ideal
from kdbench.tracks.dllm.blocks.tradeoff import Grid, left_to_right, total_correlation
from kdbench.tracks.dllm.decoding import Written, decode
from kdbench.tracks.dllm.policies.basic import Factor, Threshold, TopK
from kdbench.tracks.dllm.task import DllmTask
from kdbench_methods.dllm.parallelbench import ParallelbenchParams, simulations, train


@pytest.fixture
def task(tmp_path):
    spec = discover().task("dllm/random", "smoke")
    return DllmTask(spec, seed=0, method="dllm/parallelbench", folder=tmp_path)


def written(steps, length=None, forwards=None):
    """Texts (N, L) without ends (or with ends behind ``length``) that were written in ``steps``."""
    steps = torch.tensor(steps)
    tokens = torch.full_like(steps, 5)
    if length is not None:
        tokens[torch.arange(steps.shape[1]) >= torch.tensor(length)[:, None]] = 0
    count = steps.amax(1) + 1 if forwards is None else torch.tensor(forwards)
    return Written(tokens, count, count, count, steps, torch.ones(steps.shape))


def test_orders_of_writing():
    assert left_to_right(written([[0, 1, 2, 3]]), 0) == pytest.approx(1)
    assert left_to_right(written([[3, 2, 1, 0]]), 0) == pytest.approx(-1)
    assert left_to_right(written([[0, 0, 0, 0]]), 0) == 0
    assert left_to_right(written([[0, 1, 2, 3], [3, 2, 1, 0]]), 0) == pytest.approx(0)
    # ends behind the text are no part of it
    assert left_to_right(written([[2, 3, 4, 0]], [2]), 0) == pytest.approx(1)


@pytest.fixture
def curves():
    """Two numbers of tokens, four samples: 1.0 right one at a time, half of them two at a time."""
    correct = torch.tensor([[True, True, True, True], [True, False, True, False], [False, False, True, False]])
    tpf = torch.tensor([[1.0] * 4, [2.0] * 4, [4.0] * 4], dtype=torch.float64)
    return Grid([1, 2, 4], [], correct, tpf)


def test_summaries_of_a_curve(curves):
    everything = torch.ones(4, dtype=torch.bool)
    assert curves.points(everything) == [(1.0, 1.0), (2.0, 0.5), (4.0, 0.25)]
    assert curves.drop(everything) == 0.75
    assert curves.drop(torch.tensor([False, False, True, False])) == 0
    assert curves.best(0.9) == 1.0
    assert curves.best(0.5) == 2.0
    # each sample at the largest number at which it is right: 2, 1, 4, 1
    assert curves.oracle() == (2.0, 1.0)


def test_correlations_of_problems_with_one_and_with_several_solutions(task):
    task.phase = "evaluate"
    data = task.split("train")
    coupled = task.kind.coupled(data)
    assert coupled.any()
    assert (~coupled).any()
    assert total_correlation(task, "train", ~coupled) == pytest.approx(0)
    assert total_correlation(task, "train", coupled) > 0.3
    # shuffle without the identity, by enumeration of one of its problems
    row = next(row for row, problem in enumerate(data.problems) if problem.level == "shuffle")
    one = torch.zeros(len(data), dtype=torch.bool)
    one[row] = True
    texts = task.kind.outcomes(data.problems[row])
    wanted = Joint.of([[ord(symbol) for symbol in text] for text in texts]).total_correlation()
    assert total_correlation(task, "train", one) == pytest.approx(wanted)


def test_no_order_saves_a_step_that_takes_what_depends_on_each_other():
    """With exact marginals of a shuffle one token a step is always right, whatever the order; all at once, seldom."""
    joint, empty = ideal("shuffle", 5), Prompts(torch.zeros(400, 0).long(), torch.zeros(400, 0).bool())
    net = ExactPredictor(joint, mask=6, eos=7, vocabulary=8)
    shares = {}
    for order in ("random", "confidence", "margin", "entropy"):
        for k in (1, 5):
            options = {"length": 5, "block": 5, "temperature": 1.0, "generator": torch.Generator().manual_seed(1)}
            shares[order, k] = joint.contains(decode(net, empty, TopK(k, order), **options).tokens).double().mean()
    assert all(share == 1 for (_, k), share in shares.items() if k == 1)
    assert all(abs(share - 0.0384) < 0.04 for (_, k), share in shares.items() if k == 5)


def test_what_is_simulated():
    found = simulations(400, 4, torch.Generator().manual_seed(0))
    assert set(found) == {f"{name}/n4/k{k}" for name in ("shuffle", "replace_random") for k in (1, 2, 4)}
    assert max(found.values()) < 4
    assert found["shuffle/n4/k1"] == found["replace_random/n4/k1"] == 0


@pytest.mark.parametrize(
    ("params", "policy"),
    [
        ({"value": 3.0}, TopK(3)),
        ({"strategy": "threshold", "value": 0.8, "order": "margin"}, Threshold(0.8, "margin")),
        ({"strategy": "factor", "value": 0.7}, Factor(0.7)),
    ],
)
def test_strategies(task, params, policy):
    made = train(task, ParallelbenchParams(samples=100, largest=3, **params)).policy
    assert (made.kind, made.order) == (policy.kind, policy.order)
    assert made.commit.__func__ is policy.commit.__func__
    name = {"topk": "k", "threshold": "gamma", "factor": "factor"}[policy.kind]
    assert getattr(made, name) == getattr(policy, name)


def test_a_job_leaves_its_curves(run, tmp_path):
    outcome = run("dllm/parallelbench", "random", samples=200, largest=4).outcome
    assert outcome.extra["deviation"] < 4
    assert outcome.extra["correlation"] > 0
    assert {"drop_single", "drop_coupled", "best_tpf", "oracle_tpf", "adaptive_gap", "left_to_right"} <= set(
        outcome.extra
    )
    assert outcome.extra["oracle_tpf"] >= outcome.metrics["tpf"] - 1e-9
    table = json.loads(next(tmp_path.rglob("grid.json")).read_text())
    assert table["counts"] == [1, 2, 4, 12]
    assert all(len(points) == 4 for points in table["curves (tokens per forward, accuracy)"].values())

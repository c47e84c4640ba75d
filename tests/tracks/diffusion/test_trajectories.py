"""Stored evaluations of a guided teacher along its own sampling."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.trajectories import disagreement, output_error, replaced_errors, trajectories
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.kinds.base import Split
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.networks.build import build
from kdbench.tracks.diffusion.processes import Edm, Flow, Vp
from kdbench.tracks.diffusion.spec import Mlp
from tests.helpers.exact_task import CLASSES, exact_task


@pytest.fixture(params=[Edm(sigma_min=0.02, sigma_max=20.0), Flow()], ids=["edm", "flow"])
def task(request, tmp_path):
    return exact_task(tmp_path, request.param)


def test_states_and_predictions_are_those_of_guided_sampling(task):
    found = trajectories(task, 20, guidance=(1.0, 4.0), steps=5)
    assert len(found) == 100
    times = task.process.grid(5)
    torch.testing.assert_close(found.times, times[:-1])
    for row in (0, 7, 19):
        one = found[torch.arange(5 * row, 5 * row + 5)]
        assert len(set(one.w.tolist())) == 1
        assert 1 <= float(one.w[0]) <= 4
        a, b = task.process.alpha(one.t), task.process.sigma(one.t)
        expected = CLASSES.guided_denoise(one.x, one.cond.tokens[:, 0], float(one.w[0]), a, b)
        torch.testing.assert_close(one.goal, expected, rtol=1e-4, atol=1e-4)
        reached = task.process.jump(one.x, one.goal, one.t, times[1:])
        torch.testing.assert_close(reached[:-1], one.x[1:], rtol=1e-4, atol=1e-4)
    assert found[torch.arange(0, 100, 5)].w.unique().numel() == 20


def test_heun_keeps_both_evaluations_of_a_step(task):
    found = trajectories(task, 4, steps=3, method="heun")
    first = 1 if task.process.name == "flow" else 2  # from pure noise of a straight line the step is of first order
    assert len(found.times) == first + 2 + 1
    assert len(found) == 4 * len(found.times)


def test_they_are_made_once_and_every_job_pays_two_evaluations_each(task, tmp_path):
    first = trajectories(task, 6, steps=4)
    asked = task.teacher().rows
    assert asked == 2 * len(first) == 48
    again = trajectories(task, 6, steps=4)
    assert task.teacher().rows == asked
    assert task.budget.spent["teacher_queries"] == 2 * asked
    places = torch.tensor([23, 0, 9])
    assert torch.equal(first[places].goal, again[places].goal)
    for other in ({"seed": 1}, {"steps": 5}, {"guidance": (1.0, 2.0)}):
        different = trajectories(task, 6, **{"steps": 4, **other})
        assert not torch.equal(different[places].x, first[places].x)
    assert len(list((tmp_path / "trajectories").glob("*/entry.json"))) == 4


def test_batches_mix_trajectories_and_times(task):
    found = trajectories(task, 16, steps=4)
    batches = list(found.loader(8, torch.Generator().manual_seed(0)))
    assert [len(batch) for batch in batches] == [8] * 8
    assert batches[0].t.unique().numel() > 1
    assert batches[0].w.unique().numel() > 1
    seen = torch.cat([batch.x for batch in batches])
    assert torch.equal(seen.sort(0).values, found[torch.arange(64)].x.sort(0).values)


def test_an_empty_range_of_scales_is_refused(task):
    with pytest.raises(UsageError, match="lower and an upper end"):
        trajectories(task, 2, guidance=(3.0, 1.0))


@pytest.mark.parametrize("process", [Edm(), Flow()], ids=["edm", "flow"])
def test_the_error_is_that_of_the_raw_networks(process):
    torch.manual_seed(0)
    base = build(Mlp(width=12, depth=2), (1, 8, 8), (4,), process=process)
    torch.nn.init.normal_(base.net.leave.weight)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9])
    cond = Condition.of_tokens(torch.tensor([1, 2, 3]))
    scaled, c = base.inputs(x, t)
    raw = base.net(scaled, c, cond) - base.net(scaled, c, cond.null())
    error = output_error(process, base(x, t, cond), base(x, t, cond.null()), t)
    assert raw.abs().max() > 0.1
    torch.testing.assert_close(error.abs(), raw.abs(), rtol=1e-3, atol=1e-5)


def test_disagreement_is_none_of_equal_and_one_of_opposite_noises():
    process, x, t = Vp(), torch.randn(4, 3, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    noise = torch.randn(4, 3, dtype=torch.float64)
    one = process.x0_from_noise(x, noise, t)
    assert disagreement(process, x, one, one, t).max() < 1e-12
    opposite = process.x0_from_noise(x, -noise, t)
    torch.testing.assert_close(disagreement(process, x, one, opposite, t), torch.ones(4, dtype=torch.float64))


def test_what_guides_itself_has_no_error_and_the_conditional_prediction_has(task):
    val, cond = CLASSES.sample(40, torch.Generator().manual_seed(0))[0], torch.arange(40) % 2 + 1
    task.split = lambda name: Split(val, Condition.of_tokens(cond))

    def guides(x, t, cond):
        return guided(task.teacher(), x, t, cond, 3.0)

    found = replaced_errors(task, guides, 3.0, 8)
    assert found["error_trajectory"] < 1e-9
    assert found["error_noised"] < 1e-9
    plain = replaced_errors(task, task.teacher(), 3.0, 8)
    assert min(plain.values()) > 1e-3

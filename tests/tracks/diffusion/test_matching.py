"""Distribution matching in turns: what each side draws, and how right a critic is."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.cache import Cache
from kdbench.tracks.diffusion.batches import Batch
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.diagnosis import critic_error, posterior_mean
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.progress import Progress, early, early_updates
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm, Flow
from kdbench.tracks.diffusion.samplers.fewstep import one_step
from tests.helpers.denoisers import GaussianDenoiser, SmallDenoiser, Streams, draws, smoke_task


def reals(count=4):
    return Batch(torch.full((count, 2), 5.0), Condition.of_tokens(torch.ones(count).long()), torch.arange(count))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_generator_alone_gets_a_gradient_and_it_is_that_of_the_samples():
    generator, teacher, critic = SmallDenoiser(), SmallDenoiser(seed=1), Critic(SmallDenoiser(seed=2), lr=1e-3)
    notes = Notes()
    matching = Matching(Streams(teacher), generator, critic, times=[2.5], notes=notes)
    losses = matching.generator_loss(generator, draws(), None)
    losses["dmd"].backward()
    assert generator.last.weight.grad.abs().sum() > 0
    assert all(p.grad is None for net in (teacher, critic.network) for p in net.parameters())
    assert set(notes.read()) == {"gap", "gradient"}


def test_one_side_does_not_change_what_the_other_draws():
    def loss(turns):
        generator = SmallDenoiser()
        matching = Matching(
            Streams(SmallDenoiser(seed=1)), generator, Critic(SmallDenoiser(seed=2), lr=1e-3), times=[2.5]
        )
        for _ in range(turns):
            matching.critic_loss(draws(), None)
        return matching.generator_loss(generator, draws(), None)["dmd"]

    assert torch.equal(loss(0), loss(3))


def test_another_target_stands_in_the_place_of_the_teacher():
    teacher, near, critic = SmallDenoiser(seed=1), SmallDenoiser(seed=2), Critic(SmallDenoiser(seed=2), lr=1e-3)
    generator = SmallDenoiser()
    same = Matching(Streams(teacher), generator, critic, times=[2.5], target=lambda: near)
    other = Matching(Streams(teacher), generator, critic, times=[2.5])
    assert same.generator_loss(generator, draws(), None)["dmd"].item() == 0  # critic and target agree
    assert other.generator_loss(generator, draws(), None)["dmd"].item() > 0


def test_inputs_are_the_generators_own_states_or_noised_data():
    generator, critic = SmallDenoiser(), Critic(SmallDenoiser(seed=2), lr=1e-3)
    kinds = {}
    for inputs in ("simulated", "noised"):
        matching = Matching(Streams(SmallDenoiser(seed=1)), generator, critic, times=[2.0, 0.1], inputs=inputs)
        assert matching.needs_data == (inputs == "noised")
        rng = torch.Generator().manual_seed(0)
        found = [matching.sample(generator, draws(), reals(), rng) for _ in range(12)]
        kinds[inputs] = [(reached.x, cond) for _, cond, reached in found if int(reached.step[0]) == 1]
        assert {int(reached.step[0]) for _, _, reached in found} == {0, 1}
    noised, simulated = kinds["noised"], kinds["simulated"]
    assert all((x - 5).abs().max() < 0.6 and (cond.tokens == 1).all() for x, cond in noised)
    assert all((x - 5).abs().min() > 2 and torch.equal(cond.tokens, draws().cond.tokens) for x, cond in simulated)
    one = Matching(Streams(SmallDenoiser()), generator, critic, times=[2.0], inputs="noised")
    assert not one.needs_data


# --- how right a critic is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "t"), [(Edm(), 0.9), (Flow(), 0.5)])
def test_the_posterior_mean_of_many_samples_is_that_of_their_distribution(process, t):
    mean, factor = torch.tensor([1.0, -1.0]).double(), torch.tensor([[0.8, 0.0], [0.3, 0.5]]).double()
    rng = torch.Generator().manual_seed(0)
    samples = mean + torch.randn(20000, 2, generator=rng, dtype=torch.float64) @ factor.T
    x = process.noised(samples[:50], torch.randn(50, 2, generator=rng, dtype=torch.float64), t)
    times = torch.full((50,), t).double()
    wanted = GaussianDenoiser(mean, factor, process)(x, times)
    found = posterior_mean(process, x, times, samples[50:])
    assert float((found - wanted).abs().median()) < 0.02
    same = torch.zeros(50, 19950, dtype=torch.bool)
    same[:, 7] = True
    torch.testing.assert_close(posterior_mean(process, x, times, samples[50:], same), samples[57].expand(50, 2))


def test_the_error_of_a_critic_is_small_for_the_exact_one():
    mean, factor = torch.zeros(2), 0.5 * torch.eye(2)

    class Shifted(SmallDenoiser):
        """A generator of N(0, 0.25) from noise at time 2."""

        def denoise(self, x, t, cond, features):
            return x / 4

    task = Streams(SmallDenoiser(), Edm())
    task.shape, task.device = (2,), torch.device("cpu")
    task.kind = SimpleNamespace(conditions=lambda count, generator: Condition.none(count))
    errors = []
    for off in (0.0, 0.5):
        critic = SimpleNamespace(network=GaussianDenoiser(mean + off, factor, Edm()))
        matching = SimpleNamespace(generator=Shifted(), critic=critic, times=[2.0], mode="renoise")
        errors.append(critic_error(task, matching, torch.Generator().manual_seed(0)))
    assert errors[0] < 0.005
    assert errors[1] > 0.1


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_looked_at_where_others_look_too(tmp_path):
    task = smoke_task("ring", tmp_path, Cache(tmp_path))
    assert early_updates(task, 1) == [1, 2, 3]
    assert early_updates(task, 1) == sorted(set(early_updates(task, 1)))
    task.spec = task.spec.model_copy(update={"limits": {"steps": 2000}})
    assert early_updates(task, 5) == [21, 42, 62, 83, 104, 125, 146, 167]
    progress = Progress(task, one_step(task.student(), 2.5), [2, 4])
    spent = dict(task.budget.spent)
    for step in range(1, 6):
        progress(step)
    assert task.budget.spent == spent
    assert [point["update"] for point in progress.points] == [2, 4]
    progress.leave()
    found = early(task, "modes", "none")
    assert set(found) == {"early_sw2", "early_modes"}
    assert found["early_sw2"] == pytest.approx(progress.points[0]["sw2"])  # the student has not changed
    assert json.loads((tmp_path / "artifacts/progress.json").read_text())[0]["update"] == 2
    diagnosis.leave_values(task, {"a": 1.5})
    assert diagnosis.found(task) == {"a": 1.5}

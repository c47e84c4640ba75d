"""Turns of score identity distillation: whose gradient goes where, and who is asked for what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdbench.tracks.diffusion.batches import Batch, Draw
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.gan import Heads
from kdbench.tracks.diffusion.blocks.identity import ScoreIdentity
from kdbench.tracks.diffusion.blocks.sid import sid_loss
from kdbench.tracks.diffusion.conditions import Condition
from tests.helpers.denoisers import FakeTask, SmallDenoiser


class Recording(SmallDenoiser):
    """Notes what it is called with."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def denoise(self, x, t, cond, features):
        self.calls.append((x.detach(), t, cond.tokens[:, 0]))
        return super().denoise(x, t, cond, features)


class Setting:
    """A generator, a critic and a teacher that record, in turns with the given options."""

    def __init__(self, *, times=(2.5,), judged: bool = False, **options) -> None:
        self.teacher = Recording(0).requires_grad_(False)
        self.generator, self.network = Recording(1), Recording(2)
        self.heads = Heads(self.network.channels) if judged else None
        self.critic = Critic(self.network, lr=1e-3, modules=[self.heads] if judged else [])
        task = FakeTask()
        task.teacher, task.process = (lambda: self.teacher), self.teacher.process
        task.generator = lambda purpose: torch.Generator().manual_seed(len(purpose))
        self.turns = ScoreIdentity(
            task,
            self.generator,
            self.critic,
            lambda x, real, fake, t, logits: sid_loss(x, real, fake),
            times=times,
            heads=self.heads,
            **options,
        )

    def draw(self, rows: int = 6) -> Draw:
        noise = torch.randn(rows, 2, generator=torch.Generator().manual_seed(5))
        return Draw(noise, Condition.of_tokens(torch.full((rows,), 2)))

    def real(self, rows: int = 6) -> Batch:
        return Batch(self.draw(rows).noise, Condition.of_tokens(torch.full((rows,), 3)), torch.arange(rows))


def gradients(network: nn.Module) -> list[bool]:
    return [parameter.grad is not None for parameter in network.parameters()]


def test_the_generator_alone_learns_in_its_turn_and_through_both_networks():
    setting = Setting()
    losses = setting.turns.generator_loss(setting.generator, setting.draw(), None)
    losses["score"].backward()
    assert any(gradients(setting.generator))
    assert not any(gradients(setting.network))
    assert not any(gradients(setting.teacher))
    (x, t, tokens), (same_x, same_t, _) = setting.teacher.calls[0], setting.network.calls[0]
    assert torch.equal(x, same_x)
    assert torch.equal(t, same_t)
    assert tokens.tolist() == [2] * 6
    levels = setting.turns.levels.times
    assert t.max() <= levels[int(0.8 * len(levels))]


def test_the_critic_alone_learns_in_its_turn():
    setting = Setting()
    before = [parameter.clone() for parameter in setting.network.parameters()]
    with setting.critic.training():
        setting.critic.update(setting.turns.critic_loss(setting.draw(), None))
    assert not any(gradients(setting.generator))
    assert setting.teacher.calls == []
    assert any(not torch.equal(old, new) for old, new in zip(before, setting.network.parameters(), strict=True))


def test_samples_are_a_mixture_of_the_outputs_of_all_steps():
    setting = Setting(times=(2.5, 1.0, 0.4))
    setting.turns.sample(setting.generator, setting.draw(300), torch.Generator().manual_seed(0))
    times = setting.generator.calls[-1][1]
    shares = [float((times == time).float().mean()) for time in (2.5, 1.0, 0.4)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.1)
    assert len(setting.generator.calls) == 3  # two of them without gradient


def test_guidance_of_each_network_and_of_each_turn():
    setting = Setting(guidance=3.0, fake_training=2.0, fake_guidance=-1.0)
    setting.turns.generator_loss(setting.generator, setting.draw(), None)
    for network in (setting.teacher, setting.network):
        assert network.calls[0][2].tolist() == [2] * 6 + [0] * 6
    setting = Setting(fake_guidance=-1.0)
    setting.turns.generator_loss(setting.generator, setting.draw(), None)
    assert (len(setting.teacher.calls[0][0]), len(setting.network.calls[0][0])) == (6, 12)
    setting.turns.critic_loss(setting.draw(400), None)
    dropped = float((setting.network.calls[-1][2] == 0).float().mean())
    assert dropped == pytest.approx(0.1, abs=0.05)


def test_a_critic_without_text_never_sees_a_token_while_the_others_do():
    setting = Setting(fake_null=True, judged=True, gan_weight=0.1)
    setting.turns.critic_loss(setting.draw(), setting.real())
    setting.turns.generator_loss(setting.generator, setting.draw(), None)
    assert all(not tokens.any() for *_, tokens in setting.network.calls)
    assert all((tokens == 2).all() for *_, tokens in setting.teacher.calls + setting.generator.calls)


def test_the_discriminator_sees_real_samples_at_the_same_levels():
    setting = Setting(judged=True)
    losses = setting.turns.critic_loss(setting.draw(), setting.real(4))
    assert set(losses) == {"score", "gan"}
    (_, generated, _), (_, real, tokens) = setting.network.calls
    assert torch.equal(generated[:4], real)
    assert tokens.tolist() == [3] * 4


def test_scales_are_drawn_between_the_bounds():
    setting = Setting(guidance=2.0, guidance_range=3.0)
    found = setting.turns._teacher_scale(500)
    assert 2 <= found.min() < 2.2
    assert 4.8 < found.max() <= 5

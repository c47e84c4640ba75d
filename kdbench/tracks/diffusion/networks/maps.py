"""Networks of another kind of input, around the raw network of a denoiser: noise alone, or states between two times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.flowmap import line_limits, own_state
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, NetDenoiser
from kdbench.tracks.diffusion.processes import Time, spread


def raw(denoiser: Denoiser) -> NetDenoiser:
    """The denoiser. Raises ``UsageError`` for one without a raw network, such as an exact one."""
    if not isinstance(denoiser, NetDenoiser):
        raise UsageError(f"this needs a denoiser around a raw network, not a {type(denoiser).__name__}")
    return denoiser


class FromNoise(nn.Module):
    """The signal y(z, t) (B, *shape) from the noise z that a trajectory began with, and a time.

    The raw network always reads the prior's state of the noise; the time is its conditioning number alone, and its
    output is read as the prior's. At the prior's time this is the denoiser itself: a student that starts with the
    teacher's weights starts with the teacher's prediction there.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = raw(denoiser)

    def number(self, t: Time) -> Tensor:
        """Conditioning number of a time; () or (B,)."""
        times = torch.as_tensor(t, dtype=torch.get_default_dtype())
        return self.denoiser.inputs(times.new_zeros(times.numel(), 1), times.reshape(-1))[1].view(times.shape)

    def forward(self, noise: Tensor, t: Time, cond: Condition | None = None) -> Tensor:
        """``noise`` (B, *shape) is standard normal, ``t`` a number or (B,), from the prior's to the least."""
        return self.numbered(noise, self.number(t), cond)

    def numbered(self, noise: Tensor, number: Tensor, cond: Condition | None = None) -> Tensor:
        """As :meth:`forward`, with conditioning numbers, () or (B,)."""
        denoiser = self.denoiser
        start = torch.full((len(noise),), denoiser.process.t_max, dtype=noise.dtype, device=noise.device)
        state = denoiser.process.prior(noise)
        scaled, _ = denoiser.inputs(state, start)
        asked = Condition.none(len(noise)) if cond is None else cond
        out = denoiser.net(scaled, number.to(noise).expand(len(noise)), asked)
        return denoiser.output(state, out, start)


class FlowMap(nn.Module):
    """F(z, d) (B, *shape) of the flow map f(z, d) = z + d F(z, d), which starts at noise z and has travelled for d.

    On a straight line f = (1 - d) z + d y with the signal y of :class:`FromNoise`, so that F = y - z. The conditioning
    number goes evenly from the prior's at d = 0 to that of the least time at d = 1: with the teacher's weights F(z, 0)
    is the teacher's velocity.
    """

    def __init__(self, signal: FromNoise) -> None:
        super().__init__()
        self.signal = signal
        process = signal.denoiser.process
        ends = signal.number(torch.tensor([process.t_max, process.t_min]))
        self.first, self.last = (float(end) for end in ends)

    def forward(self, z: Tensor, d: Tensor, cond: Condition | None = None) -> Tensor:
        """``d`` (B,) in [0, 1]."""
        return self.signal.numbered(z, self.first + d * (self.last - self.first), cond) - z


class MeanVelocity(nn.Module):
    """m(x, t, r) (B, *shape): the mean velocity towards the noise between times r <= t of the straight line.

    The raw network reads t - r as one more conditioning number, with weights that start at zero: with the teacher's
    weights m is the teacher's velocity at x, whatever r is.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        """Adds the number to the network where it reads one alone."""
        super().__init__()
        self.denoiser = raw(denoiser)
        conditioning = self.denoiser.net.conditioning
        if conditioning.numbers == 1:
            conditioning.add_number()
        self.least = line_limits(self.denoiser.process)[0]

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Condition | None = None) -> Tensor:
        """``x`` (B, *shape) is a state at ``t`` on the line, ``t`` and ``r`` are (B,)."""
        denoiser = self.denoiser
        inside = t.clamp(min=self.least)
        own, time = own_state(denoiser.process, x, inside)
        scaled, number = denoiser.inputs(own, time)
        asked = Condition.none(len(x)) if cond is None else cond
        out = denoiser.net(scaled, torch.stack([number, t - r], 1), asked)
        return (x - denoiser.output(own, out, time)) / spread(inside, x)

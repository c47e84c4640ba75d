"""Denoisers: networks that predict the clean sample, whatever their raw network predicts.

A raw network is called as ``net(x, c, cond, features=False)`` with the scaled state x (B, *shape) and a conditioning
number c (B,); with ``features`` it returns its output and feature maps by name, (B, C, ...) each.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm, Flow, Process, Time, spread

Features = dict[str, Tensor]


class Denoiser(nn.Module):
    """Predicts x_0 from x_t: ``model(x, t, cond)`` is ``(B, *shape)``, float32.

    ``t`` is (B,) or a number, in the time of ``process``. With ``features=True`` the result is a pair of x_0 and
    feature maps by name, of which ``mid`` is the narrowest.
    """

    process: Process
    shape: tuple[int, ...]
    channels: dict[str, int]
    """Channels of the feature maps by name."""

    def forward(
        self, x: Tensor, t: Time, cond: Condition | None = None, *, features: bool = False
    ) -> Tensor | tuple[Tensor, Features]:
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        return self.denoise(x, times, Condition.none(len(x)) if cond is None else cond, features)

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor | tuple[Tensor, Features]:
        """As :meth:`forward`, with times (B,)."""


class NetDenoiser(Denoiser):
    """A denoiser around a raw network."""

    around = False
    """Whether the state is taken relative to the condition's image, and the network says what is missing there."""

    def __init__(self, net: nn.Module, process: Process, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.shape = tuple(shape)
        self.channels = dict(net.channels)  # type: ignore[arg-type]

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor | tuple[Tensor, Features]:
        centre = cond.image if self.around else None
        state = x if centre is None else x - centre
        scaled, number = self.inputs(state, t)
        out, maps = self.net(scaled, number, cond, features=True) if features else (self.net(scaled, number, cond), {})
        x0 = self.output(state, out.float(), t)
        x0 = x0 if centre is None else x0 + centre
        return (x0, maps) if features else x0

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """State and conditioning number as the raw network reads them."""
        return x, t

    @abstractmethod
    def output(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """x_0 from the raw network's output."""


class EdmDenoiser(NetDenoiser):
    """D(x, s) = c_skip x + c_out F(c_in x, ln(s) / 4); Karras et al., NeurIPS 2022, equation 7 and table 1."""

    process: Edm

    def inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        std = self.process.data_std
        return x / spread((t**2 + std**2).sqrt(), x), t.log() / 4

    def output(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        std = self.process.data_std
        total = t**2 + std**2
        return spread(std**2 / total, x) * x + spread(t * std / total.sqrt(), x) * out


class FlowDenoiser(NetDenoiser):
    """The raw network gives the velocity noise - x_0; x_0 = x - t v."""

    process: Flow

    def output(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return x - spread(t, x) * out

    def velocity(self, x: Tensor, t: Time, cond: Condition | None = None) -> Tensor:
        """(B, *shape) noise - x_0: what the raw network gives."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        out: Tensor = self.net(x, times, Condition.none(len(x)) if cond is None else cond).float()
        return out


class VpDenoiser(NetDenoiser):
    """The raw network gives the noise."""

    def output(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return self.process.x0_from_noise(x, out, t)


WRAPPERS: dict[str, type[NetDenoiser]] = {"edm": EdmDenoiser, "flow": FlowDenoiser, "vp": VpDenoiser}


def guided(
    denoiser: Denoiser, x: Tensor, t: Time, cond: Condition, w: Time = 1.0, negative: Condition | None = None
) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, 2021): D(null) + w (D(cond) - D(null)).

    ``w`` is a number or (B,). One call of 2 B rows; one of B rows where w is the number 1, which is the conditional
    prediction. ``negative`` takes the place of the null condition.
    """
    if not isinstance(w, Tensor) and w == 1:
        out: Tensor = denoiser(x, t, cond)
        return out
    other = cond.null() if negative is None else negative
    times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
    both = denoiser(torch.cat([x, x]), torch.cat([times, times]), Condition.cat([cond, other]))
    asked, unasked = both.chunk(2)
    return unasked + spread(w, x) * (asked - unasked)

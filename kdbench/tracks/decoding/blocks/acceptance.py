"""How often a target accepts what a draft proposes, and what that is worth.

At one context, with p the target's distribution and q the draft's, speculative sampling accepts a token x ~ q with
probability min(1, p(x) / q(x)), so that the chance to accept is

    sum_v q(v) min(1, p(v) / q(v)) = sum_v min(p(v), q(v)) = 1 - TVD(p, q)

(Leviathan et al. 2023, corollary 3.6). Its mean over text that the *target* writes is what decoding sees: text of
another source leads to contexts that decoding rarely meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.errors import UsageError, did_you_mean
from kdbench.losses.divergences import log_softmax, same_vocabulary
from kdbench.tracks.decoding.decoders.speculative import Lenience

# --- one context ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def alpha_exact(draft: Tensor, target: Tensor, *, temperature: float = 1.0, lenience: Lenience | None = None) -> Tensor:
    """Chance that a proposal of the draft is accepted at each context: logits (..., V) of both to (...), in [0, 1].

    ``1 - TVD(p, q)``, and with ``lenience`` g the sum over v of ``min(q(v), g(p)(v))``. Temperature 0 is greedy
    decoding: 1 where both have the same most probable token, else 0. Float32 or wider.
    """
    draft, target = same_vocabulary(draft, target)
    if temperature == 0:
        return (draft.argmax(-1) == target.argmax(-1)).to(torch.promote_types(draft.dtype, torch.float32))
    q, p = log_softmax(draft, temperature).exp(), log_softmax(target, temperature).exp()
    return accepted_mass(p, q, lenience)


def accepted_mass(p: Tensor, q: Tensor, lenience: Lenience | None = None) -> Tensor:
    """As :func:`alpha_exact`, of probabilities (..., V) in place of logits."""
    bound = p if lenience is None else lenience(p)
    return torch.minimum(bound, q).sum(-1).clamp_max(1.0)


# --- from the chance to tokens and time -------------------------------------------------------------------------------


def expected_tau(alpha: float, gamma: int) -> float:
    """Tokens per forward of the target, where each of ``gamma`` proposals is accepted with chance ``alpha``.

    ``(1 - alpha^(gamma + 1)) / (1 - alpha)``, for proposals that are accepted independently of each other (Leviathan et
    al. 2023, equation 1): the accepted ones and one token of the target's own; ``gamma + 1`` at alpha 1.

    >>> expected_tau(0.5, 1)
    1.5
    """
    _chance(alpha, gamma)
    return float(sum(alpha**i for i in range(gamma + 1)))


def expected_speedup(alpha: float, gamma: int, cost: float) -> float:
    """How many times faster than token by token: ``expected_tau / (cost gamma + 1)`` (Leviathan et al. 2023, thm 3.8).

    ``cost`` is the time of a forward of the draft in those of a forward of the target.

    >>> expected_speedup(0.5, 1, 0.0)
    1.5
    """
    return expected_tau(alpha, gamma) / (cost * gamma + 1)


def _chance(alpha: float, gamma: int) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a probability, not {alpha}")
    if gamma < 0:
        raise ValueError(f"gamma is a number of proposals, not {gamma}")


# --- counted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """A share of trials with its binomial standard error."""

    successes: float
    trials: float

    @property
    def value(self) -> float:
        """Share in [0, 1]; 0 where nothing was tried."""
        return self.successes / self.trials if self.trials else 0.0

    @property
    def error(self) -> float:
        """Binomial standard error of :attr:`value`; infinite where nothing was tried."""
        return math.sqrt(self.value * (1 - self.value) / self.trials) if self.trials else math.inf


def alpha_empirical(accepted: Sequence[float], tested: Sequence[float]) -> Rate:
    """Share of tested proposals that were accepted, from counts by prompt.

    A proposal is tested if all before it in its round were accepted, so the first rejection of a round ends its tests:
    what comes after it says nothing about acceptance.
    """
    return Rate(float(sum(accepted)), float(sum(tested)))


# --- lossy acceptance -------------------------------------------------------------------------------------------------

LENIENCE: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "lin": lambda p, eps: p / eps,
    "sq": lambda p, eps: p / eps**2,
    "exp": lambda p, eps: p**eps,
}
"""What a probability becomes at lenience ``eps`` (Zhou et al. 2024, DistillSpec)."""


def lenience(name: str, eps: float) -> Lenience | None:
    """The function g of which a proposal x is accepted with probability min(1, g(p)(x) / q(x)).

    ``lin``: p / eps, ``sq``: p / eps^2, ``exp``: p^eps, with ``eps`` in (0, 1]; 1 is lossless decoding, which is None.
    Raises ``UsageError`` for another name or value.
    """
    if name not in LENIENCE:
        raise UsageError(f"no lenience is called {name!r}", hint=did_you_mean(name, sorted(LENIENCE)))
    if not 0 < eps <= 1:
        raise UsageError(f"lenience is above 0 and at most 1, not {eps:g}")
    if eps == 1:
        return None
    function = LENIENCE[name]
    return lambda p: function(p, eps)

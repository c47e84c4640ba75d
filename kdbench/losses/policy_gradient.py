"""Policy gradients on sampled responses: advantages of groups, the clipped surrogate, and how tokens are averaged.

Tokens are flat: N tokens of R responses, ``sequence`` (N,) says which response a token belongs to, row-major.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdbench.losses.tokens import seq_mean, tok_mean

Aggregation = Literal["token_mean", "seq_mean", "const"]


def group_advantage(
    reward: Tensor, group: Tensor, *, scale: Literal["group", "none"] = "group", eps: float = 1e-4
) -> Tensor:
    """Advantages (R,) of rewards (R,) within their groups (R,) int64 (Shao et al. 2024, GRPO, section 4.1).

    ``(r - mean) / (std + eps)`` with the sample standard deviation of the group, or ``r - mean`` where ``scale`` is
    ``none`` (Liu et al. 2025, Dr. GRPO). Equal rewards give exactly 0. A group of one has nothing to be compared with:
    its advantage is its reward.
    """
    result = torch.empty_like(reward)
    for name in sorted(set(group.tolist())):
        members = group == name
        values = reward[members]
        if len(values) == 1:
            result[members] = values
        elif bool((values == values[0]).all()):  # the mean of equal numbers may differ from them by rounding
            result[members] = torch.zeros_like(values)
        else:
            centred = values - values.mean()
            result[members] = centred / (values.std() + eps) if scale == "group" else centred
    return result


def clipped(
    logp: Tensor,
    old_logp: Tensor,
    advantage: Tensor,
    *,
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> Tensor:
    """Losses (N,) ``-min(rho A, clip(rho, 1 - low, 1 + high) A)`` with ``rho = exp(logp - old_logp)`` (PPO).

    ``dual`` > 1 bounds the loss of negative advantages by ``-dual A`` (Ye et al. 2020). At ``logp = old_logp`` the
    value is ``-A`` and the gradient ``-A grad logp``. Old log-probabilities and advantages have no gradient.
    """
    advantage = advantage.detach()
    ratio = (logp - old_logp.detach()).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


@torch.no_grad()
def clip_fraction(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, low: float = 0.2, high: float = 0.2) -> Tensor:
    """Share of the tokens whose gradient the clipping takes away, a scalar in [0, 1]."""
    ratio = (logp - old_logp).exp()
    outside = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    return outside.to(logp.dtype).mean()


def aggregate(
    values: Tensor, sequence: Tensor, how: Aggregation = "token_mean", *, rows: int = 0, length: int = 0
) -> Tensor:
    """Values (N,) of tokens to a scalar.

    ``token_mean``: every token weighs the same (DAPO); ``seq_mean``: every response does; ``const``: the sum over
    ``rows * length``, the responses and the longest that one may be (Dr. GRPO), so that no length is favoured.
    Raises ``ValueError`` for ``const`` without them, or an unknown name.
    """
    if how == "token_mean":
        return tok_mean(values)
    if how == "seq_mean":
        return seq_mean(values, sequence)
    if how == "const":
        if rows < 1 or length < 1:
            raise ValueError("const needs the number of responses and the greatest length")
        return values.sum() / (rows * length)
    raise ValueError(f"an aggregation is 'token_mean', 'seq_mean' or 'const', not {how!r}")

"""What is looked at in policies with experts: what caching saves, and which experts are used where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdbench.task import count_parameters
from kdbench.tracks.policy.policies.experts import ScoreChunks

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask


@torch.no_grad()
def caching(task: PolicyTask, policy: ScoreChunks) -> dict[str, float]:
    """A chunk with cached experts and without, from the same noise, on the first validation tables.

    ``cache_error``: largest difference of an action; ``cache_flops_share``: FLOPs of one over those of the other;
    ``flops_per_chunk``: with caching, of one episode; ``active_parameters`` and ``total_parameters``.
    """
    seeds = task.kind.seeds("val", 1)  # type: ignore[attr-defined]
    window = task.kind.world(len(seeds)).reset(seeds).to(task.device)  # type: ignore[attr-defined]
    chunks, flops = [], []
    policy.network.eval()
    before = policy.cached
    try:
        for cached in (True, False):
            policy.cached = cached
            policy.reset(len(seeds), torch.Generator().manual_seed(0))
            policy.plan(window)  # what is made once, before acting, is not counted
            policy.reset(len(seeds), torch.Generator().manual_seed(0))
            with FlopCounterMode(display=False) as counted:
                chunks.append(policy.plan(window))
            flops.append(counted.get_total_flops())
    finally:
        policy.cached = before
    return {
        "cache_error": float((chunks[0] - chunks[1]).abs().max()),
        "cache_flops_share": flops[0] / flops[1],
        "flops_per_chunk": flops[0] / len(seeds),
        "active_parameters": float(policy.network.active_parameters()),
        "total_parameters": float(count_parameters(policy.network)),
    }


@torch.no_grad()
def usage(policy: ScoreChunks) -> dict[str, float]:
    """``experts_used``: exp of the entropy of the experts' shares over all levels of the schedule, mean over blocks.

    ``level_dependence``: mean total variation between the shares at a level and those over all levels; 0 where the
    level does not matter. Both are 1 and 0 where a router reads tokens, whose choices are no function of the level.
    """
    if policy.network.route != "noise":
        return {"experts_used": 1.0, "level_dependence": 0.0}
    device = next(policy.network.parameters()).device
    noise = policy.network.embedding((policy.sigmas[:-1].log() / 4).to(device))
    used, apart = [], []
    for block in policy.network.blocks:
        shares = block.mixture.routing(noise, sampled=False).weights
        mean = shares.mean(0)
        used.append(float(torch.special.entr(mean).sum().exp()))
        apart.append(float((shares - mean).abs().sum(-1).mean() / 2))
    return {"experts_used": sum(used) / len(used), "level_dependence": sum(apart) / len(apart)}

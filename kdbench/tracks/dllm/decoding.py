"""The loop that writes text with a mask predictor: block by block, several tokens a forward, every forward counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.state import State, Stop, Written, joined

if TYPE_CHECKING:
    from kdbench.tracks.dllm.policies.base import DecodingPolicy

__all__ = ["State", "Stop", "View", "Written", "decode", "forced", "joined", "look", "predictions"]


@dataclass
class View:
    """What a policy sees: one step of the B rows that are still being written."""

    x0: Tensor
    """(B, L) int64: predicted tokens, the most probable or sampled ones."""
    conf: Tensor
    """(B, L) float32: probability of ``x0`` from the logits without noise; -inf outside ``candidates``."""
    probs: Tensor
    """(B, L, V) float32."""
    candidates: Tensor
    """(B, L) bool: masked positions of each row's current block."""
    canvas: Tensor
    """(B, L) int64 before the commit."""
    start: Tensor
    """(B,) int64: first position of the current block."""
    size: int
    """Positions of a block."""
    step: Tensor
    """(B,) int64: forwards of the row before this one."""
    block_step: Tensor
    """(B,) int64: the same within the current block."""
    eos: int
    mask: int
    generator: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.x0)


def predictions(
    logits: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens x0 (B, L), their probabilities (B, L) and all probabilities (B, L, V), from logits.

    Noise is drawn in float64; probabilities are those without noise. Raises ``ValueError`` for sampling without a
    generator.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probs = exact.softmax(dim=-1)
    if temperature > 0:
        if generator is None:
            raise ValueError("sampling needs a generator")
        uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64).to(logits.device)
        noisy = exact.double() / temperature - (-uniform.clamp_min(1e-300).log()).log()
        x0 = noisy.argmax(dim=-1)
    else:
        x0 = exact.argmax(dim=-1)
    return x0, probs.gather(-1, x0.unsqueeze(-1)).squeeze(-1), probs


@torch.no_grad()
def decode(
    net: nn.Module,
    prompts: Prompts,
    policy: DecodingPolicy,
    *,
    length: int,
    block: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    stop: Stop = "never",
    budget: int | None = None,
    cached: bool = False,
    double: bool = False,
    observe: Callable[[View, Tensor], None] | None = None,
) -> Written:
    """Write a canvas of ``length`` positions after each prompt, block by block, committing what ``policy`` says.

    ``temperature`` 0 takes the most probable tokens. ``stop``, ``cached`` and ``double`` are as in
    :class:`~kdbench.tracks.dllm.spec.Decoding` and its evaluation. ``budget``: no row has more forwards; in each step
    at least ceil(masks left / forwards left) positions are committed, the most confident first. ``observe`` gets view
    and commit before they are written. Raises ``ValueError`` for a budget that has not a forward for each block.
    """
    if budget is not None and budget < length // block:
        raise ValueError(f"a budget of {budget} forwards is less than one for each of {length // block} blocks")
    was_training = net.training
    net.eval()
    try:
        state = State(net, prompts, length=length, block=block, stop=stop, cached=cached, double=double)
        rows = state.alive()
        while len(rows):
            view = look(state, rows, temperature, generator)
            commit = policy.commit(view)
            if not ((commit & ~view.candidates).sum() == 0 and commit.any(dim=1).all()):
                raise JobError(f"the policy {policy} must commit masked positions of the block, at least one a row")
            if budget is not None:
                commit = commit | forced(view, state.masked[rows].sum(dim=1), budget)
            if observe is not None:
                observe(view, commit)
            state.commit(rows, commit, view.x0, view.conf)
            rows = state.alive()
    finally:
        net.train(was_training)
    return state.finished()


def look(state: State, rows: Tensor, temperature: float = 0.0, generator: torch.Generator | None = None) -> View:
    """One forward of rows of a state, as a policy sees it."""
    step, block_step = state.forwards[rows], state.block_steps[rows]
    x0, conf, probs = predictions(state.logits(rows), temperature, generator)
    candidates = state.candidates(rows)
    return View(
        x0=x0,
        conf=conf.masked_fill(~candidates, -torch.inf),
        probs=probs,
        candidates=candidates,
        canvas=state.tokens[rows],
        start=state.start(rows),
        size=state.block,
        step=step,
        block_step=block_step,
        eos=state.eos,
        mask=state.mask,
        generator=generator,
    )


def forced(view: View, left: Tensor, budget: int) -> Tensor:
    """(B, L) bool: what has to be committed for rows with ``left`` (B,) masks to be done within ``budget`` forwards."""
    count = -(-left // (budget - view.step).clamp_min(1))
    order = view.conf.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return (rank < count[:, None]) & view.candidates

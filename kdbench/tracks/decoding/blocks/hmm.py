"""Hidden Markov models of token sequences: scaled forward and backward passes, and expectation maximisation.

A model of H hidden states and V tokens is initial (H,), transition (H, H) and emission (H, V), each row a distribution:
P(h_1), P(h_{t+1} | h_t), P(x_t | h_t). Messages are scaled to sum to one at each position (Rabiner, Proceedings of the
IEEE 1989, section V.A), so that no length underflows. Unknown tokens (:data:`MISSING`) are marginalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.errors import JobError

MISSING = -1
"""Id of a token that is not known."""


@dataclass
class Filtered:
    """Forward pass over N sequences of T tokens."""

    predicted: Tensor
    """(T, N, H): P(h_t | x_<t), each row summing to one."""
    scale: Tensor
    """(T, N): P(x_t | x_<t)."""
    following: Tensor
    """(N, H): P(h_{T+1} | x_1..x_T)."""

    @property
    def log_likelihood(self) -> Tensor:
        """(N,) nats."""
        return self.scale.log().sum(dim=0)


@dataclass
class Counts:
    """Expected counts under the posterior of the hidden states."""

    initial: Tensor
    """(H,)."""
    transition: Tensor
    """(H, H)."""
    emission: Tensor
    """(H, V)."""
    log_likelihood: float = 0.0
    """Nats, of all sequences."""


class HMM(nn.Module):
    """A hidden Markov model; its parameters are fitted by :func:`fit`, never by gradients."""

    def __init__(self, initial: Tensor, transition: Tensor, emission: Tensor) -> None:
        """Rows of each are distributions; ``ValueError`` where they are not."""
        super().__init__()
        for name, value in (("initial", initial), ("transition", transition), ("emission", emission)):
            if bool((value < 0).any()) or not torch.allclose(value.sum(-1), torch.ones_like(value.sum(-1)), atol=1e-4):
                raise ValueError(f"{name} {tuple(value.shape)} has rows that are no distributions")
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    @classmethod
    def random(
        cls, states: int, vocabulary: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> HMM:
        """Softmax of standard normal numbers, which tells the states apart for the first iteration."""
        shapes = ((states,), (states, states), (states, vocabulary))
        return cls(*(torch.randn(shape, generator=generator, dtype=dtype).softmax(-1) for shape in shapes))

    @property
    def states(self) -> int:
        return self.emission.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.emission.shape[1]

    def evidence(self, tokens: Tensor) -> Tensor:
        """P(x | h) of tokens (N,), (N, H); ones where the token is missing."""
        known = self.emission.t()[tokens.clamp(min=0)]
        return known.masked_fill((tokens == MISSING)[:, None], 1.0)

    def forward(self, tokens: Tensor) -> Filtered:
        """Forward pass over tokens (N, T) int64."""
        message = self.initial.expand(tokens.shape[0], -1)
        predicted, scales = [], []
        for column in tokens.unbind(1):
            joint = message * self.evidence(column)
            scale = joint.sum(-1)
            predicted.append(message)
            scales.append(scale)
            message = (joint / scale[:, None]) @ self.transition
        return Filtered(torch.stack(predicted), torch.stack(scales), message)

    def counts(self, tokens: Tensor) -> Counts:
        """Expected counts of tokens (N, T), summed over the sequences; missing tokens count for no emission.

        Raises ``JobError`` where a sequence is impossible, which no positive pseudocount allows.
        """
        passed = self(tokens)
        likelihood = float(passed.log_likelihood.double().sum())
        if not likelihood > -torch.inf:
            raise JobError("a sequence has probability zero under the hidden Markov model: give a pseudocount above 0")
        emitted = torch.zeros(self.vocabulary, self.states, dtype=self.emission.dtype, device=tokens.device)
        pairs = torch.zeros_like(self.transition)
        later = torch.ones_like(passed.following)  # P(x_{t+1..T} | h_t) / P(x_{t+1..T} | x_1..x_t)
        for t in range(tokens.shape[1] - 1, -1, -1):
            evidence = self.evidence(tokens[:, t]) / passed.scale[t][:, None]
            posterior = passed.predicted[t] * evidence * later
            known = tokens[:, t] != MISSING
            emitted.index_add_(0, tokens[known, t], posterior[known])
            arriving = evidence * later
            if t > 0:
                before = passed.predicted[t - 1] * self.evidence(tokens[:, t - 1]) / passed.scale[t - 1][:, None]
                pairs += before.t() @ arriving
                later = arriving @ self.transition.t()
        return Counts(posterior.sum(0), pairs * self.transition, emitted.t().contiguous(), likelihood)

    @torch.no_grad()
    def maximise(self, counts: Counts, pseudocount: float) -> None:
        """M-step: rows of (counts + ``pseudocount`` / size of the row), normalised; rows without any stay."""
        for name in ("initial", "transition", "emission"):
            own, value = getattr(self, name), getattr(counts, name)
            value = value + pseudocount / value.shape[-1]
            total = value.sum(-1, keepdim=True)
            own.copy_(torch.where(total > 0, value / total.clamp_min(torch.finfo(value.dtype).tiny), own))

    @torch.no_grad()
    def log_likelihood(self, tokens: Tensor, batch_size: int = 256) -> Tensor:
        """(N,) nats of tokens (N, T)."""
        return torch.cat([self(part).log_likelihood for part in tokens.split(batch_size)])


@torch.no_grad()
def fit(
    model: HMM,
    tokens: Tensor,
    *,
    iterations: int,
    pseudocount: float = 1e-3,
    dropout: float = 0.0,
    end: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    on_iteration: Callable[[int, float], None] | None = None,
) -> None:
    """Expectation maximisation in place on tokens (N, T) int64, all sequences in every iteration.

    ``dropout`` is the share of tokens, other than ``end``, that are hidden anew in each iteration, drawn from
    ``generator``. ``on_iteration(number, nats)`` gets the log-likelihood per token before the iteration's M-step, of
    the tokens that were not hidden. Without pseudocount and dropout it never falls.
    """
    for number in range(1, iterations + 1):
        seen = tokens
        if dropout:
            hidden = torch.rand(tokens.shape, generator=generator).to(tokens.device) < dropout
            seen = tokens.masked_fill(hidden & (tokens != end), MISSING)
        total: Counts | None = None
        for part in seen.split(batch_size):
            more = model.counts(part)
            if total is None:
                total = more
            else:
                total.log_likelihood += more.log_likelihood
                for name in ("initial", "transition", "emission"):
                    getattr(total, name).add_(getattr(more, name))
        assert total is not None, "no sequences to fit"
        model.maximise(total, pseudocount)
        if on_iteration is not None:
            on_iteration(number, total.log_likelihood / max(1, int((seen != MISSING).sum())))


def padded(rows: Sequence[Sequence[int]], length: int, end: int) -> Tensor:
    """Rows of ids as (N, ``length``), filled up with ``end``; longer rows are cut."""
    cut = [list(row[:length]) for row in rows]
    return torch.tensor([row + [end] * (length - len(row)) for row in cut], dtype=torch.int64)

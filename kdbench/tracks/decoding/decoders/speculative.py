"""Speculative sampling (Leviathan et al., ICML 2023; Chen et al., 2023): a draft proposes, the target verifies.

What comes out is distributed as if the target had written alone: a proposed token x is accepted with probability
``min(1, p(x) / q(x))``; where one is rejected, a token of ``norm(max(p - q, 0))`` takes its place, and where none is, a
further one comes from the target. Greedy decoding accepts what the target would have chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.decoding.decoders.base import Decoded, Decoder, save_network
from kdbench.tracks.decoding.decoders.session import Counter, Session

Lenience = Callable[[Tensor], Tensor]
"""What is put in the place of the target's probability where acceptance is decided; None is lossless."""


COUNTS = ("proposed", "tested", "accepted", "expected")
"""What is counted by prompt: proposals, those that were tested (all before them in their round were accepted), those of
them that were accepted, and how many of the tested ones the distributions at hand let expect to be."""


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Float64 distributions (..., V) of logits: at a temperature, or (0) all on the most probable token."""
    if temperature > 0:
        return (logits.double() / temperature).softmax(dim=-1)
    chosen = logits.argmax(dim=-1, keepdim=True)
    return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, chosen, 1.0)


def draw(distribution: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (...) of distributions (..., V), which need not sum to 1, by inversion at ``uniform`` (...) in [0, 1)."""
    cumulative = distribution.cumsum(dim=-1)
    places = (uniform.double() * cumulative[..., -1])[..., None]
    token = torch.searchsorted(cumulative, places, right=True).squeeze(-1)
    # the last token with any probability, where rounding has led past it
    last = distribution.shape[-1] - 1 - (distribution.flip(-1) > 0).to(torch.int8).argmax(dim=-1)
    return torch.minimum(token, last)


def verify(
    p: Tensor, q: Tensor, tokens: Tensor, uniform: Tensor, last: Tensor, lenience: Lenience | None = None
) -> tuple[Tensor, Tensor]:
    """Accepted proposals (B,) of each row, and the token (B,) that follows them (Leviathan et al., algorithm 1).

    ``p`` (B, g+1, V) and ``q`` (B, g, V) are the distributions of target and draft, ``tokens`` (B, g) what was drawn
    from q, ``uniform`` (B, g) and ``last`` (B,) random numbers in [0, 1). With ``lenience`` a proposal x is accepted
    with probability ``min(1, lenience(p(x)) / q(x))``, and what follows is no sample of the target any more.
    """
    proposals = tokens.shape[1]
    target = p[:, :proposals].gather(-1, tokens[..., None]).squeeze(-1)
    draft = q.gather(-1, tokens[..., None]).squeeze(-1)
    accepted = uniform * draft < (target if lenience is None else lenience(target))
    count = accepted.to(torch.int64).cumprod(dim=1).sum(dim=1)
    rows = torch.arange(len(p), device=p.device)
    after = p[rows, count]
    if proposals:
        beyond = torch.zeros_like(after)
        rejected = count < proposals
        beyond[rejected] = q[rows[rejected], count[rejected]]
        residual = (after - beyond).clamp_min_(0.0)
        # where p <= q everywhere up to rounding nothing is left over, and p itself is as good
        after = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, after)
    return count, draw(after, last)


class Proposer(ABC):
    """Proposes the next tokens of each row. One object serves one call of :func:`speculate`."""

    counter: Counter

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        """Read the prompts, all but their last tokens."""

    @abstractmethod
    def propose(self, last: Tensor, count: int, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """``count`` tokens (B, g) and the float64 distributions (B, g, V) that they were drawn from.

        ``last`` (B,) is the newest token of each row; ``uniform`` (B, g) are random numbers in [0, 1).
        """

    @abstractmethod
    def accept(self, tokens: Tensor, count: Tensor) -> None:
        """Of the last proposal ``tokens`` (B, g), the first ``count`` (B,) were accepted; one more token follows."""

    @abstractmethod
    def select(self, rows: Tensor) -> None:
        """Go on with the chosen rows."""


class ModelProposer(Proposer):
    """A small causal model that proposes one token after the other."""

    def __init__(self, model: nn.Module, width: int | None = None) -> None:
        """``width``: tokens that the target knows, where embeddings of the two are padded to different sizes."""
        self.counter, self.width = Counter(), width
        self.session = Session(model, self.counter)

    def start(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.session.prefill([prompt[:-1] for prompt in prompts], pad)
        # what the model has not read yet: at most the last accepted proposal
        self.waiting = torch.zeros(len(prompts), 1, dtype=torch.int64, device=self.session.device)
        self.waits = torch.zeros(len(prompts), 1, dtype=torch.bool, device=self.session.device)

    def propose(self, last: Tensor, count: int, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        tokens, distributions = [], []
        ids, present = torch.cat([self.waiting, last[:, None]], dim=1), None
        if bool(self.waits.any()):
            present = torch.cat([self.waits, torch.ones_like(self.waits)], dim=1)
        else:
            ids = last[:, None]
        self._read = self.session.lengths + self.waits.sum(dim=1)
        for step in range(count):
            logits = self.session.forward(ids, present=present)[:, -1, : self.width]
            distributions.append(probabilities(logits, temperature))
            tokens.append(draw(distributions[-1], uniform[:, step]))
            ids, present = tokens[-1][:, None], None
        return torch.stack(tokens, dim=1), torch.stack(distributions, dim=1)

    def accept(self, tokens: Tensor, count: Tensor) -> None:
        proposals = tokens.shape[1]
        self.session.trim(self._read + 1 + count.clamp_max(proposals - 1))
        self.waits = (count == proposals)[:, None]
        self.waiting = tokens[:, -1:]

    def select(self, rows: Tensor) -> None:
        self.session.select(rows)
        self.waiting, self.waits = self.waiting[rows], self.waits[rows]


@torch.no_grad()
def speculate(
    target: nn.Module,
    proposer: Proposer | None,
    prompts: Sequence[Sequence[int]],
    *,
    gamma: int,
    max_new: int,
    eos: int,
    pad: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    lenience: Lenience | None = None,
) -> Decoded:
    """Continue prompts, ``gamma`` proposals a round; without a ``proposer`` one token a round, as the target alone.

    Numbers are drawn for all rows in every round, whichever are still being written, and acceptance has a stream of its
    own: what one row gets does not depend on the others, and not on how often the draft is asked. Responses that come
    out longer than ``max_new`` are cut. Raises ``ValueError`` where sampling has no ``generator``.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling needs a generator")
    if proposer is None:
        gamma = 0
    was_training, count = target.training, len(prompts)
    target.eval()
    counter = Counter()
    session = Session(target, counter)
    device = session.device
    session.prefill([prompt[:-1] for prompt in prompts], pad)
    if proposer is not None:
        proposer.start(prompts, pad)
    seed = int(torch.randint(2**62, (1,), generator=generator)) if generator is not None else 0
    deciding = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in prompts]
    totals: dict[str, list[float]] = {name: [0] * count for name in ("forwards", *COUNTS)}
    rows = torch.arange(count, device=device)
    last = torch.tensor([prompt[-1] for prompt in prompts], device=device)
    columns = torch.arange(gamma + 1, device=device)
    try:
        while len(rows):
            noise = torch.zeros(count, 2 * gamma + 1, dtype=torch.float64)
            if temperature > 0:
                noise[:, :gamma] = torch.rand(count, gamma, generator=generator, dtype=torch.float64)
                noise[:, gamma:] = torch.rand(count, gamma + 1, generator=deciding, dtype=torch.float64)
            noise = noise.to(device)[rows]
            if proposer is not None:
                tokens, q = proposer.propose(last, gamma, temperature, noise[:, :gamma])
            else:
                tokens, q = last.new_empty(len(rows), 0), torch.empty(len(rows), 0, 1, dtype=torch.float64)
            logits = session.forward(torch.cat([last[:, None], tokens], dim=1))
            p = probabilities(logits, temperature)
            q = nn.functional.pad(q, (0, p.shape[-1] - q.shape[-1]))
            accepted, last = verify(p, q, tokens, noise[:, gamma:-1], noise[:, -1], lenience)
            chances = torch.minimum(p[:, :gamma] if lenience is None else lenience(p[:, :gamma]), q).sum(-1).tolist()
            session.keep(columns <= accepted[:, None])
            if proposer is not None:
                proposer.accept(tokens, accepted)
            alive = []
            new = torch.cat([tokens, last[:, None]], dim=1).tolist()
            for place, (row, taken) in enumerate(zip(rows.tolist(), accepted.tolist(), strict=True)):
                fresh = [*new[place][:taken], new[place][-1]]
                totals["forwards"][row] += 1
                text = written[row]
                if eos in fresh:
                    fresh = fresh[: fresh.index(eos) + 1]
                text += fresh
                tested = min(taken + 1, gamma, len(fresh))  # up to the first rejection or the end of the text
                totals["proposed"][row] += gamma
                totals["accepted"][row] += min(taken, tested)
                totals["tested"][row] += tested
                totals["expected"][row] += sum(chances[place][:tested])
                if text[-1] != eos and len(text) < max_new:
                    alive.append(place)
            rows, last = _drop(rows, last, alive, session, proposer)
    finally:
        target.train(was_training)
    counters = {"target": counter} if proposer is None else {"target": counter, "draft": proposer.counter}
    extra = {name: [float(value) for value in totals[name]] for name in COUNTS}
    return Decoded([text[:max_new] for text in written], [int(n) for n in totals["forwards"]], extra, counters)


def _drop(
    rows: Tensor, last: Tensor, alive: Sequence[int], session: Session, proposer: Proposer | None
) -> tuple[Tensor, Tensor]:
    """Rows that go on."""
    if len(alive) == len(rows):
        return rows, last
    left = torch.tensor(alive, dtype=torch.int64, device=rows.device)
    if len(left):
        session.select(left)
        if proposer is not None:
            proposer.select(left)
    return rows[left], last[left]


class Speculative(Decoder):
    """Speculative sampling with a causal model as draft."""

    kind: ClassVar[str] = "speculative"

    def __init__(self, draft: nn.Module, gamma: int = 5, lenience: Lenience | None = None) -> None:
        if gamma < 1:
            raise UsageError(f"gamma is the number of tokens proposed in a round, at least 1, not {gamma}")
        self.draft, self.gamma, self.lenience = draft, gamma, lenience

    def proposer(self, target: nn.Module) -> Proposer:
        """What proposes in one call of :meth:`decode`."""
        return ModelProposer(self.draft, target.config.get_text_config().vocab_size)

    def decode(
        self,
        target: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        eos: int,
        pad: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        was_training = self.draft.training
        self.draft.eval()
        try:
            return speculate(
                target,
                self.proposer(target),
                prompts,
                gamma=self.gamma,
                max_new=max_new,
                eos=eos,
                pad=pad,
                temperature=temperature,
                generator=generator,
                lenience=self.lenience,
            )
        finally:
            self.draft.train(was_training)

    def at(self, gamma: int, lenience: Lenience | None = None) -> Speculative:
        """The same draft with another number of proposals, or lossy."""
        return type(self)(self.draft, gamma, lenience)

    def networks(self) -> dict[str, nn.Module]:
        return {"draft": self.draft}

    def save(self, folder: Path) -> None:
        """The draft as transformers saves it. A lossy decoder is for looking at, not for keeping: ``UsageError``."""
        if self.lenience is not None:
            raise UsageError("a decoder with lenience cannot be saved; save the lossless one")
        save_network(self.draft, folder / "draft")

    @classmethod
    def load(cls, folder: Path, task: Any) -> Speculative:
        return cls(task.load_network(folder / "draft"), task.spec.evaluation.gamma)

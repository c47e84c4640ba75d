"""Drafts that are verified by the model's own next steps: what is written is what one token per step would write.

FreeDave. Let g be a static step: forward, commit the most confident masked position of the block. From
the predictions for the present text, draft j commits its j most confident positions; draft 1 is g's own next text. All
drafts are forwarded at once, and each gives its successor under g. From draft 1 on, the text jumps to the largest draft
that the successor of the draft before contains, token for token; where it stops, the next drafts are made of the
predictions that were computed there already. Nothing is guessed: every jump is one that g would have made.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoders.base import Decoder, load_predictor, save_predictor
from kdbench.tracks.dllm.decoding import State, Written, predictions
from kdbench.tracks.dllm.policies.scores import ranks

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


@dataclass(frozen=True)
class Drafting:
    """How drafts are made."""

    drafts: int = 4
    """Drafts a round (d)."""
    threshold: float = 0.0
    """Draft 1 has all positions of at least this confidence, and so have the successors (FreeDave++); 0: one token.
    The text is then no longer that of a static decoder: a jump may take a part of a successor."""
    eager: bool = False
    """Drafts reach beyond the block; earlier blocks come first."""
    tree: bool = False
    """With a cache: all drafts are one sequence, in which no draft sees another one."""


class _Round:
    """Predictions for the present text of all rows, and the drafts that are made of them."""

    def __init__(self, state: State, how: Drafting) -> None:
        rows, length = state.tokens.shape
        self.state, self.how = state, how
        self.x0 = torch.zeros_like(state.tokens)
        self.conf = torch.zeros(rows, length, dtype=torch.float64, device=state.tokens.device)
        self.known = torch.zeros(rows, dtype=torch.bool, device=state.tokens.device)

    def learn(self, rows: Tensor, logits: Tensor) -> None:
        """Keep what logits (n, L, V) predict for rows."""
        x0, conf, _ = predictions(logits)
        self.x0[rows], self.conf[rows] = x0, conf.double()
        self.known[rows] = True

    def within(self, rows: Tensor) -> Tensor:
        """(n, L) bool: positions that drafts may commit."""
        return self.state.masked[rows] if self.how.eager else self.state.candidates(rows)

    def order(self, rows: Tensor, within: Tensor) -> Tensor:
        """(n, L) int64: in which order drafts commit them, block by block and the most confident first."""
        sure = self.conf[rows]
        if self.how.eager:
            sure = sure - 2.0 * (torch.arange(self.state.length, device=rows.device) // self.state.block)
        return ranks(sure.masked_fill(~within, -torch.inf))

    def first(self, rows: Tensor, within: Tensor) -> Tensor:
        """(n,) int64: positions of draft 1."""
        if not self.how.threshold:
            return torch.ones_like(rows)
        return ((self.conf[rows] >= self.how.threshold) & self.state.candidates(rows)).sum(dim=1).clamp_min(1)


def successors(state: State, rows: Tensor, canvas: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """(n, L) texts after a static step from ``canvas`` (n, L), whose logits (n, L, V) are given."""
    x0, conf, _ = predictions(logits)
    candidates = state.candidates(rows, canvas)
    sure = conf.double().masked_fill(~candidates, -torch.inf)
    chosen = (ranks(sure) == 0) & candidates
    if threshold:
        chosen = chosen | (sure >= threshold) & candidates
    return torch.where(chosen, x0, canvas)


def chain(drafts: Tensor, targets: Tensor, exists: Tensor, forwarded: Tensor, mask: int) -> Tensor:
    """(n,) int64: the draft that is reached from the first one.

    ``drafts`` and ``targets`` (n, D, L); ``exists`` and ``forwarded`` (n, D) bool: whether there is such a draft, and
    its successor. From draft b the largest j > b is taken all of whose tokens are in targets[b] with the same value.
    """
    inside = ((drafts[:, None] == targets[:, :, None]) | (drafts[:, None] == mask)).all(dim=-1)  # (n, from, to)
    inside &= exists[:, None] & forwarded[:, :, None]
    count = drafts.shape[1]
    later = torch.ones(count, count, dtype=torch.bool, device=drafts.device).triu(1)
    number = torch.arange(count, device=drafts.device)
    step = torch.where(inside & later, number, number[:, None]).amax(dim=2)  # (n, D): the largest one reached from each
    best = torch.zeros(len(drafts), dtype=torch.int64, device=drafts.device)
    for _ in range(count - 1):
        best = step.gather(1, best[:, None]).squeeze(1)
    return best


@torch.no_grad()
def draft_and_verify(
    net: nn.Module,
    prompts: Prompts,
    how: Drafting,
    *,
    length: int,
    block: int,
    stop: str = "never",
    cached: bool = False,
    double: bool = False,
    budget: int | None = None,
) -> Written:
    """Write after prompts; options as in :func:`kdbench.tracks.dllm.decoding.decode`, always the most probable tokens.

    ``extra`` counts by prompt the ``rounds`` and the positions they have ``accepted`` beyond draft 1. Raises
    ``ValueError`` for ``stop: truncate``, for eager drafts or a budget with a cache, and for a tree without one.
    """
    if stop == "truncate":
        raise ValueError("drafts were read with what is behind an end: stop must be never or eos")
    if cached and (how.eager or budget is not None):
        raise ValueError("with a cache there are no predictions beyond the block: no eager drafts, no budget")
    if how.tree and not cached:
        raise ValueError("tree drafts share what is outside the block: they need a cache")
    was_training = net.training
    net.eval()
    state = State(net, prompts, length=length, block=block, stop=stop, cached=cached, double=double)  # type: ignore[arg-type]
    now = _Round(state, how)
    rounds, accepted = (torch.zeros(len(prompts), dtype=torch.int64, device=prompts.ids.device) for _ in range(2))
    rows = state.alive()
    while len(rows):
        unknown = rows[~now.known[rows]]
        if len(unknown):
            now.learn(unknown, state.logits(unknown))
        within, left = now.within(rows), state.masked[rows].sum(dim=1)
        order, first = now.order(rows, within), now.first(rows, within)
        counts = first[:, None] + torch.arange(how.drafts, device=rows.device)
        needed = torch.zeros_like(first)
        if budget is not None:
            ahead = (budget - state.forwards[rows]).clamp_min(0)
            needed = torch.minimum(-(-left // (ahead + 1)), within.sum(dim=1))
            last = ahead == 0
            order, within = _all(now, rows, order, within, last)
            needed = torch.where(last, left, needed)
            counts = torch.cat([counts, needed.clamp_min(1)[:, None]], dim=1)
        exists = counts <= within.sum(dim=1, keepdim=True)
        exists[:, 0] = True
        drafts = torch.where(
            (order[:, None] < counts[..., None]) & within[:, None], now.x0[rows, None], state.tokens[rows, None]
        )
        open_ = state.present[rows, None] & (drafts == state.mask)
        room = state.candidates(rows)[:, None] if cached else torch.ones_like(open_)
        read = exists & (open_ & room).any(dim=-1)
        if budget is not None:
            read &= ~last[:, None]
            read[:, -1] &= needed > counts[:, -2]  # the same draft is there already
            exists[:, -1] &= needed > counts[:, -2]
        reads = read.any(dim=1)
        targets = drafts.clone()
        said = _forward(state, rows, drafts, read, how.tree)
        at, number = read.nonzero(as_tuple=True)
        targets[at, number] = successors(state, rows[at], drafts[at, number], said, how.threshold)
        best = chain(
            drafts[:, : how.drafts],
            targets[:, : how.drafts],
            exists[:, : how.drafts],
            read[:, : how.drafts],
            state.mask,
        )
        if budget is not None:
            reached = counts.gather(1, best[:, None]).squeeze(1)
            enough = (counts == needed[:, None]) & (exists | last[:, None])
            best = torch.where(reached < needed, enough.int().argmax(dim=1), best)
        rounds[rows] += reads
        taken = counts.gather(1, best[:, None]).squeeze(1)
        accepted[rows] += taken - first
        chosen = (drafts[torch.arange(len(rows)), best] != state.tokens[rows]) & state.masked[rows]
        state.commit(rows, chosen, now.x0[rows], now.conf[rows])
        place = torch.full(read.shape, -1, dtype=torch.int64, device=rows.device)
        place[at, number] = torch.arange(len(at), device=rows.device)
        source = place.gather(1, best[:, None]).squeeze(1)
        now.known[rows] = source >= 0
        kept = source >= 0
        now.learn(rows[kept], said[source[kept]])
        rows = state.alive()
    net.train(was_training)
    return state.finished({"rounds": rounds, "accepted": accepted})


def _all(now: _Round, rows: Tensor, order: Tensor, within: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Order and positions of drafts, with everything that is masked for rows that have no forward left."""
    masked = now.state.masked[rows]
    everything = torch.where(last[:, None], masked, within)
    return torch.where(last[:, None], ranks(now.conf[rows].masked_fill(~masked, -torch.inf)), order), everything


def _forward(state: State, rows: Tensor, drafts: Tensor, read: Tensor, tree: bool) -> Tensor:
    """Logits (M, L, V) of the drafts that are ``read`` (n, D) in row-major order; one forward for each row."""
    at, number = read.nonzero(as_tuple=True)
    if not len(at):
        return torch.zeros(0, drafts.shape[-1], state.net.vocabulary, device=drafts.device)
    if not tree:
        return state.logits(rows[at], drafts[at, number])
    some = read.any(dim=1)
    # rows whose drafts are fewer have those that are not read in their sequence, too: nobody sees them
    said = state.tree_logits(rows[some], drafts[some])
    return said[read[some]]


class FreeDave(Decoder):
    """Drafts and their verification; see the module."""

    kind: ClassVar[str] = "freedave"

    def __init__(self, net: nn.Module, how: Drafting, cached: bool | None = None) -> None:
        """``cached`` wins over the task's."""
        self.net, self.how, self.cached = net, how, cached

    def decode(
        self, prompts: Prompts, *, generator: torch.Generator | None = None, budget: int | None = None, **options: Any
    ) -> Written:
        """Raises ``ValueError`` for a temperature: what a static decoder would sample is not one text."""
        if options.pop("temperature", 0.0) > 0:
            raise ValueError("drafts are verified against the most probable tokens: temperature must be 0")
        if self.cached is not None:
            options["cached"] = self.cached
        how = self.how
        if budget is not None:  # which may take more than a block at once: no cache then
            options["cached"], how = False, replace(how, tree=False)
        return draft_and_verify(self.net, prompts, how, budget=budget, **options)

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def save(self, folder: Path, task: DllmTask) -> None:
        save_predictor(self.net, folder / "net", task)
        (folder / "drafting.json").write_text(json.dumps({"how": asdict(self.how), "cached": self.cached}) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DllmTask) -> FreeDave:
        facts = json.loads((folder / "drafting.json").read_text())
        return cls(load_predictor(folder / "net", task), Drafting(**facts["how"]), facts["cached"])

"""Speculative decoding with a tree of proposals that grows where the draft is sure (Li et al., EMNLP 2024, EAGLE-2).

A round: the draft proposes the ``breadth`` best next tokens; from level to level the ``breadth`` nodes with the largest
cumulative probability are expanded to as many children each; of all nodes the ``size`` best by cumulative probability
are kept, and the target reads them in one forward in which each sees its own ancestors alone. The longest path that the
target accepts is written, and one token of its own after it.

Proposals are picked, not drawn: as if each came from a distribution with all its mass on it. Rejection sampling against
such a distribution accepts a token x with probability p(x), and goes on with p without x, so what is written is
distributed as what the target writes alone; greedily, a token is accepted where it is the target's choice. Breadth 1 is
a chain, and its tokens may be ``drawn`` from the draft instead, for the rule of Leviathan et al. (ICML 2023).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.decoding.blocks.drafting import Drafting
from kdbench.tracks.decoding.blocks.eagle import Eagle
from kdbench.tracks.decoding.decoders.base import Decoded, Decoder
from kdbench.tracks.decoding.decoders.session import Counter, Session
from kdbench.tracks.decoding.decoders.speculative import draw, probabilities


@dataclass(frozen=True)
class Shape:
    """How a tree grows."""

    depth: int = 4
    """Tokens of its longest path: forwards of the draft in a round."""
    breadth: int = 4
    """Nodes that are expanded on each level, and children of each."""
    size: int = 16
    """Nodes that the target reads."""
    drawn: bool = False
    """Chains alone: tokens are drawn from the draft, not its best ones, where the target samples."""

    def __post_init__(self) -> None:
        if min(self.depth, self.breadth, self.size) < 1:
            raise UsageError(f"depth, breadth and size of a tree are at least 1, not {self}")
        if self.drawn and self.breadth > 1:
            raise UsageError(
                "tokens of a tree are picked, not drawn: reranking what was drawn would bias what is written"
            )


class Tree(NamedTuple):
    """Proposals of B rows, m nodes each; parents come before children, better siblings before worse."""

    tokens: Tensor
    """(B, m) int64."""
    parents: Tensor
    """(B, m) int64 place of the parent, -1 for the root, which is the newest token of the row."""
    depths: Tensor
    """(B, m) int64, from 1."""
    scores: Tensor
    """(B, m) float64 logarithm of the cumulative probability."""
    proposals: Tensor | None = None
    """(B, m, V) float64 distributions that the tokens were drawn from; None where they were picked."""

    def ancestors(self) -> Tensor:
        """(B, m+1, m+1) bool: nodes that each node sees, itself among them; the first is the root."""
        rows, size = self.tokens.shape
        seen = torch.zeros(rows, size + 1, size + 1, dtype=torch.bool, device=self.tokens.device)
        seen[:, 0, 0] = True
        every = torch.arange(rows, device=self.tokens.device)
        for place in range(size):
            seen[:, place + 1] = seen[every, self.parents[:, place] + 1]
            seen[:, place + 1, place + 1] = True
        return seen


def grow(drafting: Drafting, shape: Shape, temperature: float, uniform: Tensor) -> Tree:
    """Let a draft propose a tree after what has been written; ``uniform`` (B, depth) serves drawn tokens."""
    logits, states = drafting.begin()
    rows, device = len(logits), logits.device
    drawn = shape.drawn and temperature > 0
    breadth = min(shape.breadth, logits.shape[-1])
    tokens, parents, depths, scores, proposals = [], [], [], [], []
    sees = torch.zeros(rows, 0, 0, dtype=torch.bool, device=device)
    above: Tensor | None = None  # (B, n) scores of the nodes that were expanded, None for the root
    expanded = torch.full((rows, 1), -1, device=device)  # their places among all nodes
    count = 0
    logits, states = logits[:, None], states[:, None]
    for level in range(1, shape.depth + 1):
        log_q = logits.double().log_softmax(dim=-1)
        if drawn:
            q = probabilities(logits[:, 0], temperature)
            chosen = draw(q, uniform[:, level - 1])[:, None, None]
            best = log_q.gather(-1, chosen)
            proposals.append(q)
        else:
            best, chosen = log_q.topk(breadth, dim=-1)
        best = best if above is None else best + above[..., None]
        width = best.shape[1] * best.shape[2]
        tokens.append(chosen.flatten(1))
        scores.append(best.flatten(1))
        parents.append(expanded[..., None].expand_as(chosen).flatten(1))
        depths.append(torch.full((rows, width), level, device=device))
        if level == shape.depth:
            break
        pick = scores[-1].sort(dim=1, descending=True, stable=True).indices[:, :breadth]
        above, born = scores[-1].gather(1, pick), pick // chosen.shape[2]
        expanded = count + pick
        count += width
        # what the expanded nodes see of those expanded before them: what their parents see, and the parents
        slots = sees.shape[1]
        own = torch.eye(pick.shape[1], dtype=torch.bool, device=device).expand(rows, -1, -1)
        if slots:
            line = sees[:, slots - states.shape[1] :].gather(1, born[..., None].expand(-1, -1, slots))
            visible = torch.cat([line, own], dim=2)
        else:
            visible = own
        sees = torch.cat([nn.functional.pad(sees, (0, pick.shape[1])), visible], dim=1)
        parent_states = states.gather(1, born[..., None].expand(-1, -1, states.shape[2]))
        logits, states = drafting.extend(tokens[-1].gather(1, pick), parent_states, level, visible)
    whole = Tree(
        torch.cat(tokens, dim=1),
        torch.cat(parents, dim=1),
        torch.cat(depths, dim=1),
        torch.cat(scores, dim=1),
        torch.stack(proposals, dim=1) if drawn else None,
    )
    return rerank(whole, shape.size)


def rerank(tree: Tree, size: int) -> Tree:
    """The ``size`` nodes of the largest cumulative probability, in their order.

    With a node its ancestors stay: none is less probable, and among equals the earlier one is taken.
    """
    if tree.tokens.shape[1] <= size:
        return tree
    kept = tree.scores.sort(dim=1, descending=True, stable=True).indices[:, :size].sort(dim=1).values
    places = torch.zeros_like(tree.tokens).scatter_(1, kept, torch.arange(size, device=kept.device).expand_as(kept))
    parents = tree.parents.gather(1, kept)
    proposals = tree.proposals
    return Tree(
        tree.tokens.gather(1, kept),
        torch.where(parents < 0, parents, places.gather(1, parents.clamp_min(0))),
        tree.depths.gather(1, kept),
        tree.scores.gather(1, kept),
        None if proposals is None else proposals[:, :size],  # chains alone: what is kept is their beginning
    )


def verify_tree(p: Tensor, tree: Tree, uniform: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The accepted path of each row as a mask (B, m+1) over root and nodes, and the token (B,) that follows it.

    ``p`` (B, m+1, V) float64 are the target's distributions after root and nodes; ``uniform`` (B, m) and ``last`` (B,)
    random numbers in [0, 1). Children of an accepted node are tried in their order: x is accepted with probability
    ``min(1, r(x) / q(x))``, r at first p, and after a rejection ``norm(max(r - q, 0))``; q is the distribution that x
    was drawn from, for a picked x all on x. What follows comes from r after the last accepted node.
    """
    rows, size = tree.tokens.shape
    every = torch.arange(rows, device=p.device)
    residual = p[:, 0].clone()
    current = torch.zeros(rows, dtype=torch.int64, device=p.device)
    kept = torch.zeros(rows, size + 1, dtype=torch.bool, device=p.device)
    kept[:, 0] = True
    for place in range(size):
        token = tree.tokens[:, place]
        tried = tree.parents[:, place] + 1 == current
        total = residual.sum(dim=1)
        q = torch.ones_like(total) if tree.proposals is None else tree.proposals[every, place, token]
        accepted = tried & (uniform[:, place] * q * total < residual[every, token])
        rejected = tried & ~accepted
        if tree.proposals is None:
            residual[every[rejected], token[rejected]] = 0.0
        else:
            beyond = (residual[rejected] / total[rejected, None] - tree.proposals[rejected, place]).clamp_min(0.0)
            # where p <= q everywhere up to rounding nothing is left over, and p itself is as good
            residual[rejected] = torch.where(beyond.sum(dim=1, keepdim=True) > 0, beyond, residual[rejected])
        residual[accepted] = p[accepted, place + 1]
        current[accepted] = place + 1
        kept[:, place + 1] = accepted
    return kept, draw(residual, last)


@torch.no_grad()
def decode_tree(
    target: nn.Module,
    drafting: Drafting,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    eos: int,
    pad: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Continue prompts, a tree of proposals a round; see :func:`~.speculative.speculate` for what is drawn when.

    Raises ``ValueError`` where sampling has no ``generator``, ``UsageError`` for a prompt of one token: the draft then
    has no feature to begin with.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling needs a generator")
    if min(map(len, prompts)) < 2:
        raise UsageError("an EAGLE draft continues prompts of at least two tokens")
    count, counter = len(prompts), Counter()
    session = Session(target, counter)
    device = session.device
    prefix = session.prefill([prompt[:-1] for prompt in prompts], pad)
    last = torch.tensor([prompt[-1] for prompt in prompts], device=device)
    drafting.start(prefix, last)
    seed = int(torch.randint(2**62, (1,), generator=generator)) if generator is not None else 0
    deciding = torch.Generator().manual_seed(seed)
    written: list[list[int]] = [[] for _ in prompts]
    totals = {name: [0] * count for name in ("forwards", "proposed", "accepted")}
    rows = torch.arange(count, device=device)
    while len(rows):
        noise = torch.zeros(count, shape.depth + shape.size + 1, dtype=torch.float64)
        if temperature > 0:
            noise[:, : shape.depth] = torch.rand(count, shape.depth, generator=generator, dtype=torch.float64)
            noise[:, shape.depth :] = torch.rand(count, shape.size + 1, generator=deciding, dtype=torch.float64)
        noise = noise.to(device)[rows]
        tree = grow(drafting, shape, temperature, noise[:, : shape.depth])
        positions = session.lengths[:, None] + nn.functional.pad(tree.depths, (1, 0))
        ids = torch.cat([last[:, None], tree.tokens], dim=1)
        logits, states = session.forward(ids, positions=positions, visible=tree.ancestors(), hidden=True)
        p = probabilities(logits, temperature)
        size = tree.tokens.shape[1]
        kept, last = verify_tree(p, tree, noise[:, shape.depth : shape.depth + size], noise[:, -1])
        session.keep(kept)
        accepted = kept.sum(dim=1) - 1
        # root and accepted nodes first and in order, each with the token that follows it
        order = kept.logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, : int(accepted.max()) + 1]
        columns = torch.arange(order.shape[1], device=device)
        follows = torch.cat([ids.gather(1, order)[:, 1:], last[:, None]], dim=1)
        follows = torch.where(columns == accepted[:, None], last[:, None], follows)
        features = states.gather(1, order[..., None].expand(-1, -1, states.shape[2]))
        drafting.commit(follows, features, columns <= accepted[:, None])
        alive = []
        for place, (row, taken) in enumerate(zip(rows.tolist(), accepted.tolist(), strict=True)):
            fresh = follows[place, : taken + 1].tolist()
            totals["forwards"][row] += 1
            totals["proposed"][row] += size
            totals["accepted"][row] += taken
            text = written[row]
            text += fresh[: fresh.index(eos) + 1] if eos in fresh else fresh
            if text[-1] != eos and len(text) < max_new:
                alive.append(place)
        if len(alive) < len(rows):
            left = torch.tensor(alive, dtype=torch.int64, device=device)
            rows, last = rows[left], last[left]
            if alive:
                session.select(left)
                drafting.select(left)
    extra = {name: [float(value) for value in totals[name]] for name in ("proposed", "accepted")}
    extra |= {"visual_tokens": drafting.left.tolist(), "way": drafting.ways.tolist()}
    counters = {"target": counter, "draft": drafting.counter}
    return Decoded([text[:max_new] for text in written], totals["forwards"], extra, counters)


class TreeDecoder(Decoder):
    """An EAGLE draft that proposes trees, or chains."""

    kind: ClassVar[str] = "tree"

    def __init__(self, draft: Eagle, shape: Shape, facts: dict[str, Any] | None = None) -> None:
        """``facts`` are plain values that are saved along: how the draft was made and how it came on."""
        self.draft, self.shape, self.facts = draft, shape, dict(facts or {})

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
        modes = [(network, network.training) for network in (target, self.draft)]
        try:
            for network, _ in modes:
                network.eval()
            drafting = Drafting(self.draft, target)
            options: dict[str, Any] = {"max_new": max_new, "eos": eos, "pad": pad, "temperature": temperature}
            return decode_tree(target, drafting, self.shape, prompts, generator=generator, **options)
        finally:
            for network, training in modes:
                network.train(training)

    def networks(self) -> dict[str, nn.Module]:
        return {"draft": self.draft}

    def save(self, folder: Path) -> None:
        save_file(self.draft.state_dict(), folder / "draft.safetensors")
        about = {"draft": self.draft.about, "shape": asdict(self.shape), "facts": self.facts}
        (folder / "tree.json").write_text(json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, task: Any) -> TreeDecoder:
        about = json.loads((folder / "tree.json").read_text())
        draft = Eagle(task.teacher(), **about["draft"])
        draft.load_state_dict(load_file(folder / "draft.safetensors"))
        return cls(task.place(draft).eval(), Shape(**about["shape"]), about["facts"])

"""Federated training, simulated: clients that learn side by side, what they exchange in rounds, and its bytes.

The clients are the members of one module and take their steps together. Their parameters are disjoint and the usual
optimizers work by element, so that one optimizer over all is the same as one each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.training.loaders import cycle
from kdbench.training.state import Values

FLOAT, INDEX = 4, 4
"""Bytes of a number and of the position of a proxy sample on the wire."""

Share = Literal["logits", "probabilities"]


@dataclass
class Batches:
    """A batch per client."""

    each: list[Any]

    def __len__(self) -> int:
        """Samples of all of them."""
        return sum(len(batch) for batch in self.each)


class Together(Iterator[Batches]):
    """One batch of every loader at a time, without end."""

    def __init__(self, loaders: Iterable[Iterable[Any]]) -> None:
        self.cycles = [cycle(loader) for loader in loaders]

    def __next__(self) -> Batches:
        return Batches([next(each) for each in self.cycles])

    def state_dict(self) -> dict[str, Any]:
        return {str(number): each.state_dict() for number, each in enumerate(self.cycles)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, each in enumerate(self.cycles):
            each.load_state_dict(state[str(number)])


class Timetable:
    """Which of the steps of a training belong to which round, and where the clients exchange.

    The steps are shared by the rounds in equal parts, and what is left over goes to the first one. In a round the
    clients train by themselves for ``local`` of the steps (at least one), exchange, and learn from it for the rest.
    """

    def __init__(self, steps: int, rounds: int, local: float) -> None:
        """``rounds`` >= 1, at most half of the steps; ``local`` in (0, 1)."""
        self.rounds = max(1, min(rounds, steps // 2))
        each = max(1, steps // self.rounds)
        self.exchanges: set[int] = set()
        """Steps, from 1, after which there is an exchange."""
        ends = [steps - each * later for later in reversed(range(self.rounds))]
        for end in ends:
            learning = max(1, min(each - 1, round((1 - local) * each)))
            if end - learning > 0:
                self.exchanges.add(end - learning)
        self.ends = set(ends)
        """Steps, from 1, with which a round ends."""


def consensus(outputs: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the clients that sent a sample; (K, P, C), (K, P) bool to (P, C), (P,) bool of samples anybody sent.

    Samples that nobody sent have a mean of 0, to be left out.
    """
    weights = kept.to(outputs.dtype)
    total = torch.einsum("kp,kpc->pc", weights, outputs)
    count = weights.sum(0)
    return total / count.clamp(min=1)[:, None], count > 0


class Exchange(Values):
    """The server of federated distillation: what it holds after the latest exchange, and what went over the wire.

    The server draws ``sample`` of the proxy samples; each client sends its outputs for those of them that it keeps,
    with a bit per drawn sample that says which; the server averages per sample over the clients that sent it and sends
    that to all, again with a bit per drawn sample.
    """

    kept: ClassVar[tuple[str, ...]] = ("rows", "targets", "uploaded", "downloaded", "unsent", "latest")

    def __init__(
        self,
        clients: nn.ModuleList,
        proxy: Tensor,
        keeps: Tensor,
        *,
        sample: int,
        share: Share,
        temperature: float,
        generator: torch.Generator,
    ) -> None:
        """``proxy`` (P, ...) inputs, ``keeps`` (K, P) bool, ``sample`` at most P, ``generator`` of the server's draws.

        Raises ``UsageError`` where the masks do not fit the clients and the proxy set.
        """
        if keeps.shape != (len(clients), len(proxy)):
            raise UsageError(
                f"the masks are {tuple(keeps.shape)}; expected one row for each of {len(clients)} clients and one "
                f"column for each of {len(proxy)} proxy samples"
            )
        self.clients, self.proxy, self.keeps = clients, proxy, keeps
        self.sample, self.share, self.temperature = min(sample, len(proxy)), share, temperature
        self.generator = generator
        self.rows = torch.empty(0, dtype=torch.int64, device=proxy.device)
        """(R,) proxy samples that the clients got something about in the latest exchange."""
        self.targets = torch.empty(0, 0, device=proxy.device)
        """(R, C) logits to learn."""
        self.uploaded: list[int] = []
        """Bytes that all clients sent, by round."""
        self.downloaded: list[int] = []
        self.unsent: list[int] = []
        """Drawn samples that nobody kept, by round."""
        self.latest = 0

    @torch.no_grad()
    def run(self) -> None:
        """One exchange. Outputs are those of the networks in eval mode; their modes are as before afterwards."""
        drawn = torch.randperm(len(self.proxy), generator=self.generator)[: self.sample].to(self.proxy.device)
        kept = self.keeps[:, drawn]
        outputs = torch.stack([self._outputs(client, drawn) for client in self.clients])
        mean, received = consensus(outputs, kept)
        if self.share == "probabilities":
            mean = self.temperature * mean.clamp(min=1e-12).log()
        self.rows, self.targets = drawn[received], mean[received]
        clients, classes, bits = len(self.clients), outputs.shape[-1], -(-len(drawn) // 8)
        self.uploaded.append(int(kept.sum()) * classes * FLOAT + clients * bits)
        self.downloaded.append(
            clients * (len(drawn) * INDEX + int(received.sum()) * classes * FLOAT + bits),
        )
        self.unsent.append(int((~received).sum()))
        self.latest += 1

    def _outputs(self, client: nn.Module, rows: Tensor) -> Tensor:
        was_training = client.training
        client.eval()
        logits: Tensor = client(self.proxy[rows]).float()
        client.train(was_training)
        return F.softmax(logits / self.temperature, -1) if self.share == "probabilities" else logits

    def draw(self, count: int) -> Tensor:
        """(at most ``count``,) random places in ``rows``."""
        return torch.randperm(len(self.rows), generator=self.generator)[:count].to(self.rows.device)


class FederatedDistillation:
    """Loss and rounds of federated distillation, for ``task.fit(clients, each.loss, on_step=each.on_step)``.

    Each client minimises the cross-entropy on its private batch and, after the exchange of a round, T^2 KL to the
    averaged outputs on as many proxy samples. Private and proxy samples go through a network as one batch, so that its
    normalisation statistics are updated once per step.
    """

    def __init__(self, exchange: Exchange, timetable: Timetable, weight: float) -> None:
        """``weight`` >= 0 of the divergence; ``exchange`` is what changes, for ``task.fit(..., state=[exchange])``."""
        self.exchange, self.timetable, self.weight = exchange, timetable, weight
        self.phase = Values(learning=False)

    def loss(self, clients: Any, batches: Batches) -> dict[str, Tensor]:
        """Named terms, each the sum over the clients, of one private batch per client."""
        hard, soft = [], []
        learning = self.phase.learning and len(self.exchange.rows) > 0
        for client, batch in zip(clients.members, batches.each, strict=True):
            if not learning:
                hard.append(cross_entropy(client(batch.x), batch.y))
                continue
            places = self.exchange.draw(len(batch))
            logits = client(torch.cat([batch.x, self.exchange.proxy[self.exchange.rows[places]]]))
            own, shared = logits[: len(batch)], logits[len(batch) :]
            hard.append(cross_entropy(own, batch.y))
            soft.append(kd_kl(shared, self.exchange.targets[places], self.exchange.temperature))
        terms = {"ce": torch.stack(hard).sum()}
        if soft:
            terms["kd"] = self.weight * torch.stack(soft).sum()
        return terms

    def on_step(self, step: int) -> None:
        if step in self.timetable.ends:
            self.phase.learning = False
        if step in self.timetable.exchanges:
            self.exchange.run()
            self.phase.learning = True


@torch.no_grad()
def average_weights(clients: Sequence[nn.Module], sizes: Sequence[int]) -> int:
    """Give all clients the mean of their weights and buffers, weighted by ``sizes``; how many bytes each one sends.

    McMahan et al., AISTATS 2017, algorithm 1. Raises ``UsageError`` for clients of different architectures.
    """
    states = [client.state_dict() for client in clients]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise UsageError("weights can be averaged over clients of one architecture only", hint="name it once")
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    total = 0
    for name, first in states[0].items():
        total += first.numel() * first.element_size()
        each = torch.stack([state[name] for state in states])
        if each.is_floating_point():
            mean = torch.tensordot(shares.to(each), each, 1)
        else:
            mean = each.amax(0)  # counts of batches
        for state in states:
            state[name].copy_(mean)
    return total

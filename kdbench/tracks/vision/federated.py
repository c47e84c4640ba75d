"""Federated tasks of the track: the clients with their data and networks, one training for all, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import JobError, UsageError
from kdbench.tracks.vision import metrics
from kdbench.tracks.vision.derived import Federated
from kdbench.tracks.vision.models.clients import Clients
from kdbench.tracks.vision.spec import check_arch
from kdbench.tracks.vision.task import VisionTask
from kdbench.training.federated import Exchange, FederatedDistillation, Timetable, Together

ROUNDS = "rounds.json"
"""Artifact with the masks, the traffic and what else the rounds of a job leave for its evaluation."""


@dataclass
class Federation:
    """Who has which images. K clients, P proxy images, C classes."""

    rows: list[Tensor]
    """Positions in the split ``train`` of each client's private images."""
    owner: Tensor
    """(P,) client that contributed each proxy image."""
    position: Tensor
    """(P,) position of each proxy image in the split ``train``."""
    classes: Tensor
    """(K, C) bool: classes of which a client has private images."""

    @classmethod
    def of(cls, task: VisionTask) -> Federation:
        """The task's federation. Raises ``JobError`` where its data are not divided among clients."""
        if not isinstance(task.spec.data.derive, Federated):
            raise JobError(f"{task.spec.name} has no clients; use a task of the family federated")
        train, proxy = task.split("train"), task.split("proxy")
        rows = [(train.meta["client"] == k).nonzero().flatten() for k in range(task.spec.data.derive.clients)]
        held = torch.stack([torch.bincount(train.y[mine], minlength=task.num_classes) > 0 for mine in rows])
        return cls(rows, proxy.meta["client"], proxy.meta["position"], held)

    def __len__(self) -> int:
        """Number of clients."""
        return len(self.rows)

    def own(self) -> Tensor:
        """(K, P) bool: the proxy images that a client contributed itself."""
        return self.owner == torch.arange(len(self), device=self.owner.device)[:, None]

    def known(self, labels: Tensor) -> Tensor:
        """(K, P) bool: the proxy images of a class that a client has, from their true labels (P,)."""
        return self.classes[:, labels]


def make_clients(task: VisionTask, federation: Federation, archs: Sequence[str]) -> Clients:
    """Networks on the task's device, the architectures in turn; for one seed they start from the same weights.

    Raises ``UsageError`` for an architecture that the track does not have.
    """
    try:
        archs = [check_arch(arch) for arch in archs]
    except ValueError as error:
        raise UsageError(f"models: {error}") from error
    chosen = [archs[k % len(archs)] for k in range(len(federation))]
    with task.seeded("init"):
        clients = Clients(chosen, num_classes=task.num_classes, size=task.spec.data.size)
    return clients.to(task.device)


def private_batches(task: VisionTask, federation: Federation) -> Together:
    """One batch of each client at a time, in an order that is the same for all methods."""
    return Together(task.train_loader(indices=rows) for rows in federation.rows)


def fit_clients(
    task: VisionTask,
    clients: Clients,
    federation: Federation,
    loss: Callable[..., Any],
    *,
    lr: float,
    on_step: Callable[[int], None] | None = None,
    state: Sequence[Any] = (),
) -> None:
    """Train all clients side by side by Adam at a constant rate.

    The steps of one client are charged to the limit, those of the others are metered as ``aux_steps``.
    """
    task.budget.spend("aux_steps", (len(federation) - 1) * task.budget.steps())
    recipe = {"optimizer": "adam", "lr": lr, "schedule": "constant", "weight_decay": 0.0, "warmup": 0.0}
    loader = private_batches(task, federation)
    task.fit(clients, loss, loader=loader, on_step=on_step, state=state, **recipe)


def distil_clients(
    task: VisionTask, clients: Clients, federation: Federation, keeps: Tensor, params: Any, *, state: Sequence[Any] = ()
) -> Exchange:
    """Federated distillation with masks (K, P) of the proxy images that each client speaks about.

    ``params`` has ``rounds``, ``local``, ``sample``, ``share``, ``temperature``, ``weight`` and ``lr``. Leaves the
    artifact :data:`ROUNDS` and meters the traffic as ``upload_bytes`` and ``download_bytes``.
    """
    proxy = task.split("proxy").x
    exchange = Exchange(
        clients.members,
        proxy,
        keeps,
        sample=max(1, round(params.sample * len(proxy))),
        share=params.share,
        temperature=params.temperature,
        generator=task.generator("data"),  # the same draws for every method
    )
    timetable = Timetable(task.budget.steps(), params.rounds, params.local)
    distillation = FederatedDistillation(exchange, timetable, params.weight)
    fit_clients(
        task,
        clients,
        federation,
        distillation.loss,
        lr=params.lr,
        on_step=distillation.on_step,
        state=[exchange, distillation.phase, *state],
    )
    write_rounds(
        task,
        up=exchange.uploaded,
        down=exchange.downloaded,
        keeps=exchange.keeps.int().tolist(),
        unsent=exchange.unsent,
        drawn=exchange.sample,
    )
    return exchange


def write_rounds(task: VisionTask, *, up: list[int], down: list[int], **more: Any) -> None:
    """Meter the bytes of each round and leave them, with what else there is, for :func:`client_metrics`."""
    task.budget.spend("upload_bytes", sum(up))
    task.budget.spend("download_bytes", sum(down))
    task.artifact(ROUNDS).write_text(json.dumps({"upload_bytes": up, "download_bytes": down, **more}))


def client_metrics(task: VisionTask, clients: Clients) -> dict[str, float]:
    """What evaluation adds to the means over the clients that the track reports.

    ``local_top1`` and ``foreign_top1``: mean accuracy on test images of classes that a client has, and has not, seen
    at home (0 where there are none); ``worst_client_top1``; ``ensemble_top1`` of the mean probabilities;
    ``round_upload_bytes`` and ``round_download_bytes``: means over the rounds of the bytes of all clients;
    ``filter_precision`` and ``filter_recall``: of the masks on images that others contributed, against their true
    classes, over all clients together (1 where nothing is kept, or is to be kept).
    """
    federation, test = Federation.of(task), task.split("test")
    logits = [task.predict(member, test.x) for member in clients.members]
    correct = torch.stack([each.argmax(1) == test.y for each in logits]).double()
    at_home = federation.classes[:, test.y]
    values = {
        "local_top1": _mean(correct, at_home),
        "foreign_top1": _mean(correct, ~at_home),
        "worst_client_top1": float(correct.mean(1).min()),
        "ensemble_top1": metrics.accuracy(clients.ensemble(logits), test.y),
    }
    rounds = json.loads(task.artifact(ROUNDS).read_text()) if task.artifact(ROUNDS).exists() else {}
    for name in ("upload_bytes", "download_bytes"):
        sent = rounds.get(name, [])
        values[f"round_{name}"] = sum(sent) / max(1, len(sent))
    if "keeps" in rounds:
        kept = torch.tensor(rounds["keeps"], dtype=torch.bool, device=task.device)
        values |= filter_quality(kept, federation.known(task.truth("proxy")), federation.own())
    return values


def filter_quality(kept: Tensor, known: Tensor, own: Tensor) -> dict[str, float]:
    """Precision and recall of masks (K, P) against the images of known classes, own contributions left out."""
    kept, known = kept & ~own, known & ~own
    right = float((kept & known).sum())
    return {
        "filter_precision": right / float(kept.sum()) if kept.any() else 1.0,
        "filter_recall": right / float(known.sum()) if known.any() else 1.0,
        "filter_kept": float(kept.sum()) / float((~own).sum()),
    }


def _mean(values: Tensor, where: Tensor) -> float:
    """Mean over the clients of the mean of each row (K, N) where the mask holds; 0 where it never does."""
    count = where.sum(1)
    some = count > 0
    return float(((values * where).sum(1)[some] / count[some]).mean()) if some.any() else 0.0

"""No federation: every client trains on its private images alone, with as many steps as in the federated methods."""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.federated import Federation, client_metrics, fit_clients, make_clients

BASELINE = Baseline(
    slug="local_only",
    title="Clients that train alone",
    track="vision",
    tasks=["federated"],
    tags=["federated", "floor"],
)


class LocalOnlyParams(Params):
    """Clients and learning rate."""

    models: list[str] = Field(
        ["rn(4,1)", "rn(6,1)", "vit(32,2,2)"], min_length=1, description="architectures of the clients, in turn"
    )
    lr: float = Field(0.003, gt=0, le=1, description="learning rate of Adam, constant")


@hookimpl
def train(task, params):
    federation = Federation.of(task)
    clients = make_clients(task, federation, params.models)

    def loss(model, batches):
        pairs = zip(model.members, batches.each, strict=True)
        return torch.stack([cross_entropy(member(batch.x), batch.y) for member, batch in pairs]).sum()

    fit_clients(task, clients, federation, loss, lr=params.lr)
    return clients


@hookimpl
def evaluate(task, model):
    return task.score(model) | client_metrics(task, model)

"""Federated averaging (McMahan et al., AISTATS 2017): clients of one architecture exchange weights in place of outputs.

All clients start from the same weights, train on their private images, and at the end of each round take the mean of
their weights, weighted by their numbers of images. All end with the same network.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.federated import Federation, client_metrics, fit_clients, make_clients, write_rounds
from kdbench.training.federated import Timetable, average_weights
from kdbench.training.state import Values

BASELINE = Baseline(
    slug="fedavg",
    title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
    track="vision",
    tasks=["federated"],
    tags=["federated", "weights"],
    reference="McMahan, Moore, Ramage, Hampson, Agüera y Arcas; AISTATS 2017, arXiv 1602.05629",
)


class FedavgParams(Params):
    """The one architecture, rounds and learning rate."""

    model: str = Field("rn(6,1)", description="architecture of all clients")
    rounds: int = Field(10, ge=1, le=1000, description="averages of the weights; at most half of the steps")
    lr: float = Field(0.003, gt=0, le=1, description="learning rate of Adam, constant over the rounds")


@hookimpl
def train(task, params):
    federation = Federation.of(task)
    clients = make_clients(task, federation, [params.model])
    sizes = [len(rows) for rows in federation.rows]
    for member in clients.members[1:]:
        member.load_state_dict(clients.members[0].state_dict())
    ends, traffic = Timetable(task.budget.steps(), params.rounds, 0.5).ends, Values(sent=[])

    def loss(model, batches):
        pairs = zip(model.members, batches.each, strict=True)
        return torch.stack([cross_entropy(member(batch.x), batch.y) for member, batch in pairs]).sum()

    def on_step(step):
        if step in ends:
            traffic.sent.append(len(federation) * average_weights(clients.members, sizes))

    fit_clients(task, clients, federation, loss, lr=params.lr, on_step=on_step, state=[traffic])
    write_rounds(task, up=traffic.sent, down=traffic.sent)
    return clients


@hookimpl
def evaluate(task, model):
    return task.score(model) | client_metrics(task, model)

"""FedMD (Li and Wang, 2019): federated distillation without a filter.

Clients of different architectures train on their private images, send their logits for all proxy images that the server
draws, and learn the average of all clients: cross-entropy on private images + w T^2 KL(mean || own) on proxy images.
The divergence stands where the publication has the absolute error of logits, so that this is ``edgefd`` with masks that
are 1 everywhere; the training on labelled public images that the publication starts with has no counterpart here, where
nobody but their contributor knows the labels of the proxy images.
"""

from typing import Literal

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.vision.federated import Federation, client_metrics, distil_clients, make_clients

BASELINE = Baseline(
    slug="fedmd",
    title="FedMD: Heterogenous Federated Learning via Model Distillation",
    track="vision",
    tasks=["federated"],
    tags=["federated", "logits"],
    reference="Li, Wang; NeurIPS workshop 2019, arXiv 1910.03581",
)


class FedmdParams(Params):
    """Clients, rounds and loss."""

    models: list[str] = Field(
        ["rn(4,1)", "rn(6,1)", "vit(32,2,2)"], min_length=1, description="architectures of the clients, in turn"
    )
    rounds: int = Field(10, ge=1, le=1000, description="exchanges; at most half of the steps")
    local: float = Field(0.5, gt=0, lt=1, description="share of a round's steps before the exchange, on private images")
    sample: float = Field(1.0, gt=0, le=1, description="share of the proxy set that the server draws in a round")
    share: Literal["logits", "probabilities"] = Field("logits", description="what clients send and the server averages")
    temperature: float = Field(2.0, gt=0, le=100, description="of the divergence, and of shared probabilities")
    weight: float = Field(1.0, ge=0, description="of the divergence on the proxy images")
    lr: float = Field(0.003, gt=0, le=1, description="learning rate of Adam, constant over the rounds")


@hookimpl
def train(task, params):
    federation = Federation.of(task)
    clients = make_clients(task, federation, params.models)
    distil_clients(task, clients, federation, torch.ones_like(federation.own()), params)
    return clients


@hookimpl
def evaluate(task, model):
    return task.score(model) | client_metrics(task, model)

"""EdgeFD: Federated Distillation on Edge Devices with Client-Side Filtering (Mujtaba et al., 2025).

K clients with private images and networks of different families share no weights and no data but a proxy set, to which
each contributed a few images. A client should speak only about proxy images that look like its own. So, once, it fits
k-means on its private images (1 to 3 centroids per class it has) and takes as threshold the 90th percentile of their
distances to the nearest centroid. Then, in rounds:

1. local training: cross-entropy on the private images;
2. the server draws proxy images; a client sends its logits, with a mask, for those that it contributed itself and those
   with min_j |x - c_j| <= threshold;
3. the server averages per image over the clients that sent it, and drops the images that nobody sent; it neither
   filters nor has a teacher;
4. clients learn: cross-entropy on private images + w T^2 KL(mean || own) on the proxy images that came back.

``filter`` gives what it is compared with: KuLSIF, a costly density-ratio estimate, with a threshold of the same kind;
the clients' true classes (oracle); and no filter, which with ``own`` off is federated distillation as in ``fedmd``.

The score is the mean of the clients' accuracies on all classes. Evaluation adds accuracies on classes that a client has
and has not at home, the precision and recall of the masks, the bytes of a round, and the estimator's multiply-adds and
memory; its seconds are metered. The distance to IID clients is that to the same method on a task whose clients are IID.
"""

import json
import time
from typing import Literal

import numpy as np
import torch
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.vision.federated import ROUNDS, Federation, client_metrics, distil_clients, make_clients
from kdbench.training.density import kmeans_filter, kulsif_filter

PAPER = Paper(
    slug="edgefd",
    title="Federated Distillation on Edge Devices: Efficient Client-Side Filtering for Non-IID Data",
    year=2025,
    authors=["Ahmed Mujtaba", "Gleb Radchenko", "Radu Prodan", "Marc Masana"],
    venue="FLTA 2025",
    arxiv="2508.14769",
    track="vision",
    source="abstract",
    tasks=["federated"],
    tags=["federated", "logits", "data-selection"],
    claims=[
        Compare(
            metric="top1",
            subject="edgefd",
            reference="fedmd",
            tasks=[
                "federated",
                "federated-iid",
                "federated-weak",
                "mnist5k-federated",
                "mnist5k-federated-weak",
                "mnist5k-federated-iid",
            ],
            note="with disjoint classes per client, filtering beats averaging what all clients say",
        ),
        Compare(
            metric="filter_multiply_adds",
            subject="edgefd",
            reference={"method": "edgefd", "params": {"filter": "kulsif"}},
            tasks=["mnist5k-federated"],
            kind="ratio",
            margin=0.2,
            direction="min",
            note="k-means is at least five times cheaper than the density ratio by KuLSIF",
        ),
    ],
    departures=[
        "5 or 6 clients on 16 x 16 images and 200 or 400 steps each, in place of 10 clients trained to convergence",
        "one k-means over all private images of a client; how the full text sets its centroids is not known to us",
    ],
)


class EdgefdParams(Params):
    """Filter, rounds and loss."""

    filter: Literal["kmeans", "kulsif", "oracle", "none"] = Field(
        "kmeans", description="how a client decides which proxy images it speaks about; the paper's is kmeans"
    )
    own: bool = Field(True, description="a client always speaks about the images that it contributed")
    centroids: int = Field(3, ge=1, le=20, description="kmeans: centroids per class that a client has")
    percentile: float = Field(
        90.0, ge=0, le=100, description="of the private images' distances: the threshold, from private data alone"
    )
    ridge: float = Field(0.1, gt=0, description="kulsif: regularisation of the density ratio")
    features: Literal["pixels", "encoder"] = Field(
        "pixels", description="what distances are between: pixels, or a fixed untrained convolutional encoder's output"
    )
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


def encoder(task):
    """Two strided convolutions with random weights, the same for all clients; (B, 3, P, P) to (B, 64, P/4, P/4)."""
    with task.seeded("encoder"):
        layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers).to(task.device)


@torch.no_grad()
def features(task, x, kind):
    """(N, D) float64 array that distances are taken in."""
    x = encoder(task)(x) if kind == "encoder" else x
    return x.flatten(1).double().cpu().numpy()


def masks(task, federation, params):
    """(K, P) bool masks of the proxy images that each client speaks about, and what the estimator took."""
    train, proxy = task.split("train"), task.split("proxy")
    own = federation.own()
    took = {"multiply_adds": 0.0, "memory_bytes": 0.0, "seconds": 0.0}
    if params.filter == "none":
        kept = torch.ones_like(own)
    elif params.filter == "oracle":  # the contributors know the labels; only a simulation can ask them
        kept = federation.known(train.y[federation.position])
    else:
        private, foreign = features(task, train.x, params.features), features(task, proxy.x, params.features)
        seeds, rows = task.rng("kmeans"), []
        for k, mine in enumerate(federation.rows):
            started = time.perf_counter()
            inputs = private[mine.cpu().numpy()]
            if params.filter == "kmeans":
                clusters = params.centroids * int(federation.classes[k].sum())
                seed = int(seeds.integers(2**32))
                result = kmeans_filter(inputs, foreign, clusters=clusters, percentile=params.percentile, seed=seed)
            else:
                result = kulsif_filter(inputs, foreign, lam=params.ridge, percentile=params.percentile)
            rows.append(result.mask)
            took["multiply_adds"] += result.multiply_adds
            took["memory_bytes"] = max(took["memory_bytes"], result.memory_bytes)
            took["seconds"] += time.perf_counter() - started
        kept = torch.from_numpy(np.stack(rows)).to(own.device)
    return kept | own if params.own else kept, took


@hookimpl
def train(task, params):
    federation = Federation.of(task)
    clients = make_clients(task, federation, params.models)
    keeps, took = masks(task, federation, params)
    task.budget.spend("filter_seconds", took["seconds"])
    task.artifact("filter.json").write_text(json.dumps(took))
    distil_clients(task, clients, federation, keeps, params)
    return clients


@hookimpl
def evaluate(task, model):
    took = json.loads(task.artifact("filter.json").read_text())
    rounds = json.loads(task.artifact(ROUNDS).read_text())
    return (
        task.score(model)
        | client_metrics(task, model)
        | {
            "filter_multiply_adds": took["multiply_adds"],
            "filter_memory_mb": took["memory_bytes"] / 1e6,
            "unsent_share": sum(rounds["unsent"]) / max(1, len(rounds["unsent"]) * rounds["drawn"]),
        }
    )

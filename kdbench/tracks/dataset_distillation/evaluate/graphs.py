"""Scores of distilled sets of graphs: fresh networks learn from them and classify real graphs."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.errors import Diverged, JobError
from kdbench.task import Scores, seed_of
from kdbench.tracks.dataset_distillation.data.graphs import Graphs
from kdbench.tracks.dataset_distillation.distilled.base import Distilled
from kdbench.tracks.dataset_distillation.distilled.graphset import GraphSet, Learnable
from kdbench.tracks.dataset_distillation.distilled.whole import Whole
from kdbench.tracks.dataset_distillation.networks.graphs import GraphNet, build_graph_net, layers_of

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask

ROWS = 500
"""Graphs that are predicted at a time."""


def learnable(task: DDTask, distilled: Distilled) -> tuple[Learnable, int]:
    """The set as networks learn from it, and the optimizer steps that they learn for."""
    evaluation = task.spec.evaluation
    if isinstance(distilled, Whole):
        return GraphSet(task.kind.split("train")), evaluation.whole_updates
    if isinstance(distilled, Learnable):
        return distilled, evaluation.updates
    raise JobError(f"{task.spec.name} has no score for a {type(distilled).__name__}")


@torch.enable_grad()
def learn(task: DDTask, distilled: Distilled, arch: str, seed: int) -> GraphNet:
    """A fresh network that learned from a set: AdamW, cosine, the last weights; all randomness from ``seed``.

    Raises ``Diverged`` where weights become infinite.
    """
    evaluation, (source, updates) = task.spec.evaluation, learnable(task, distilled)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", arch, seed))
        network = task.kind.build(arch)
        assert isinstance(network, GraphNet)
        network.to(task.device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=evaluation.lr, weight_decay=evaluation.weight_decay)
        batches = source.batches(evaluation.batch_size, np.random.default_rng(seed_of("order", seed)))
        for step, batch in enumerate(islice(batches, updates)):
            for group in optimizer.param_groups:
                group["lr"] = evaluation.lr * 0.5 * (1 + math.cos(math.pi * step / updates))
            optimizer.zero_grad(set_to_none=True)
            graphs = batch.to(task.device)
            F.cross_entropy(network(graphs), graphs.y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise Diverged("a network that learned from the distilled set has infinite weights")
    return network.eval()


@torch.no_grad()
def probabilities(network: GraphNet, graphs: Graphs) -> Tensor:
    """(G, K) of real graphs; all nodes are pooled."""
    rows = torch.arange(len(graphs), device=graphs.y.device).split(ROWS)
    return torch.cat([network(graphs.take(part)).softmax(-1) for part in rows])


def accuracy(network: GraphNet, graphs: Graphs) -> float:
    """Share of graphs whose most probable class is the right one."""
    return float((probabilities(network, graphs).argmax(1) == graphs.y).double().mean())


def area(chances: Tensor, y: Tensor) -> float:
    """Area under the ROC curve, one class against the others, mean over the classes; nan where y has one class
    alone."""
    from sklearn.metrics import roc_auc_score

    truth, p = y.cpu().numpy(), chances.double().cpu().numpy()
    per_class = [roc_auc_score(truth == label, p[:, label]) for label in np.unique(truth) if len(np.unique(truth)) > 1]
    return float(np.mean(per_class)) if per_class else math.nan


def references(task: DDTask) -> dict[str, float]:
    """``whole`` and ``random`` test accuracy of the student's architecture; made once per task."""
    spec = task.spec

    def make(folder: Path) -> None:
        test, runs = task.split("test"), range(spec.evaluation.runs)
        whole = [accuracy(learn(task, Whole(), spec.student, run), test) for run in runs]
        part = [
            task.kind.random(task, torch.Generator().manual_seed(seed_of(spec.name, "random subset", run)))
            for run in runs
        ]
        random = [accuracy(learn(task, part[run], spec.student, run), test) for run in runs]
        found = {"whole": sum(whole) / len(whole), "random": sum(random) / len(random)}
        (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n")

    values: dict[str, float] = json.loads(
        (task.cache.get("reference", spec.scores_key("reference"), make) / "scores.json").read_text()
    )
    return values


def validate(task: DDTask, distilled: Distilled) -> dict[str, float]:
    """``accuracy`` on the validation graphs of one network of the student's architecture."""
    seed = seed_of(task.stream("eval"), "val")
    return {"accuracy": accuracy(learn(task, distilled, task.spec.student, seed), task.split("val"))}


def measure(task: DDTask, distilled: Distilled) -> Scores:
    """All metrics of the track for graphs; ``accuracy`` by test graph is the mean over the runs."""
    spec, test = task.spec, task.split("test")
    chances: dict[str, list[Tensor]] = {}
    for run, arch in enumerate([spec.student] * spec.evaluation.runs + list(spec.evaluation.unseen)):
        network = learn(task, distilled, arch, seed_of(task.stream("eval"), run))
        chances.setdefault(arch, []).append(probabilities(network, test))
    hits = {arch: torch.stack([(p.argmax(1) == test.y).double() for p in found]) for arch, found in chances.items()}
    each = hits[spec.student].mean(0)
    others = [float(hits[arch].mean()) for arch in spec.evaluation.unseen]
    size, whole = len(learnable(task, distilled)[0].encode()), task.kind.whole_floats(task)["bytes"]
    metrics = {
        "accuracy": float(each.mean()),
        "auc": float(np.mean([area(p, test.y) for p in chances[spec.student]])),
        "cross": sum(others) / len(others) if others else float(each.mean()),
        "bytes": float(size),
        "bytes_share": size / whole,
    }
    metrics |= {f"accuracy_{arch.partition('(')[0]}": float(found.mean()) for arch, found in hits.items()}
    return Scores(metrics, {"accuracy": each.cpu().numpy()})


@torch.no_grad()
def root_error(arch: str, real: Graphs, forest: Graphs, *, labels: int, kinds: int, seed: int) -> float:
    """How far embeddings of roots are from those of the nodes that the trees belong to, for random weights in float64.

    max |tree - node| / max |node| with the trees of the nodes in their order; 0 up to rounding where a layer uses what
    it can see in the tree alone, as a sum or attention does. Degrees of leaves cannot be seen in a tree.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_graph_net(arch, labels=labels, kinds=kinds, classes=2, pool="sum", dropout=0.0).double().eval()
    assert forest.roots is not None
    wanted = network.embeddings(real)
    found = network.embeddings(forest)[forest.roots]
    return float((found - wanted).abs().max() / wanted.abs().max())


def depth(task: DDTask) -> int:
    """Most layers of the networks that a set of this task is scored with."""
    return max(layers_of(arch) for arch in (task.spec.student, *task.spec.evaluation.unseen))

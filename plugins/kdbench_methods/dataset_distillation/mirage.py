"""Mirage: computation trees that occur together stand for graphs.

A network with L layers of message passing sees of a graph the L-hop computation tree of each node: all neighbours,
theirs, and so on, the way back included. Few trees make up most of what occurs, and networks of any kind see the same
ones. So:

1. Each training graph becomes the set of the numbers of its nodes' trees; isomorphic trees, and only these, share a
   number.
2. For each class c, FP-growth finds all sets of trees that at least theta_c of its graphs contain, with their
   frequency.
3. The sets, their frequencies and their trees are the distilled data; no network has been trained. theta_c is the least
   one whose sets fit into the bytes that may be kept.
4. A training sample is a set, drawn in proportion to its frequency in its class: the disjoint union of its trees, with
   edges from child to parent. The network pools the roots alone, and real graphs with all nodes at test time.

For layers that sum or attend, the embedding of a root is exactly that of the node (``root_error_gin``,
``root_error_gat``); layers that divide by degrees see other degrees at the leaves (``root_error_gcn``).
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.blocks.mining import Miner, transactions_of
from kdbench.tracks.dataset_distillation.blocks.trees import Trees, computation_trees, skew
from kdbench.tracks.dataset_distillation.distilled.trees import Pattern, TreeSet
from kdbench.tracks.dataset_distillation.evaluate.graphs import depth, root_error

PAPER = Paper(
    slug="mirage",
    title="Mirage: Model-Agnostic Graph Distillation for Graph Classification",
    authors=["Mridul Gupta", "Sahil Manchanda", "Hariprasad Kodamana", "Sayan Ranu"],
    year=2024,
    venue="ICLR 2024",
    arxiv="2310.09486",
    track="dataset_distillation",
    source="code",
    tasks=["graphs"],
    tags=["graphs", "pattern-mining", "no-training"],
    claims=[
        Compare(
            metric="accuracy_gin",
            subject="mirage",
            reference="random",
            tasks=["motifs"],
            note="Better than random graphs of as many bytes, with each architecture.",
        ),
        Compare(metric="accuracy_gcn", subject="mirage", reference="random", tasks=["motifs"]),
        Compare(metric="accuracy_gat", subject="mirage", reference="random", tasks=["motifs"]),
        Compare(metric="accuracy", subject="mirage", reference="random_trees", tasks=["motifs"]),
        Compare(
            metric="accuracy",
            subject="mirage",
            reference={"method": "mirage", "params": {"weights": "equal"}},
            tasks=["motifs"],
            kind="noninferior",
            margin=0.02,
            note="How often a set occurs says how often it should be met.",
        ),
        Compare(
            metric="root_error_gin",
            subject="mirage",
            reference=0.0,
            tasks=["motifs"],
            kind="noninferior",
            margin=1e-5,
            direction="min",
            note="The embedding of a root is that of the node, for sums.",
        ),
        Compare(
            metric="gradient_steps",
            subject="mirage",
            reference=0.0,
            tasks=["motifs"],
            kind="noninferior",
            direction="min",
        ),
    ],
    departures=[
        "every distinct subtree is stored once, and bytes are those of the written file; released: unrolled trees",
        "trees are numbered exactly; the hashes of the released code may collide",
        "theta follows from the bytes that may be kept instead of being given by data set; no network is asked",
        "new sets are drawn in every update; the released code draws 1000 before training",
    ],
)


class MirageParams(Params):
    """Trees and sets."""

    hops: int = Field(
        0, ge=0, le=10, description="L: depth of the trees; 0: layers of the networks that learn from them"
    )
    support: float = Field(
        0.0, ge=0, le=1, description="theta: share of a class's graphs; 0: the least one that fits into the bytes"
    )
    sets: Literal["all", "closed"] = Field(
        "all", description="all frequent sets, or those without a larger one of the same frequency"
    )
    weights: Literal["frequency", "equal"] = Field("frequency", description="what sets are drawn in proportion to")


@hookimpl
def train(task, params):
    train = task.kind.split("train")
    hops = params.hops or depth(task)
    table, budget = Trees(), task.kind.budget
    trees = computation_trees(train, hops, table)
    task.meter_reals(len(train))
    miner = Miner(hops, table, transactions_of(trees, train.y.tolist(), task.classes), closed=params.sets == "closed")
    if params.support:
        supports = [max(1, round(params.support * len(graphs))) for graphs in miner.transactions]
        found = miner.summary(supports, budget)
        if found is None:
            raise UsageError(
                f"the sets of trees at support {params.support:g} take more than the {budget} bytes that may be kept",
                hint="raise support, or leave it to the method with 0",
            )
    else:
        found, supports = miner.tuned(budget)
    if params.weights == "equal":
        found = TreeSet(hops, found.table, [Pattern(p.label, p.trees, 1) for p in found.patterns], found.sizes)
    task.log(0, skew=skew(trees), patterns=len(found.patterns), **{f"support/{c}": n for c, n in enumerate(supports)})
    return found


@hookimpl
def evaluate(task, model):
    """Beside the official metrics: sizes, the skew of trees, and how exact roots are for each kind of layer."""
    train, kind = task.kind.split("train"), task.kind.set
    table = Trees()
    trees = computation_trees(train, model.hops, table)
    some = train.take(torch.arange(min(50, len(train))))
    forest = table.forest([tree for own in trees[: len(some)] for tree in own])
    errors = {
        f"root_error_{family}": root_error(
            f"{family}({model.hops},16)", some, forest, labels=kind.labels, kinds=kind.kinds, seed=task.seed
        )
        for family in ("gin", "gat", "gcn")
    }
    kept = model.roots
    return (
        task.score(model)
        | errors
        | {
            "gradient_steps": float(task.budget.spent.get("steps", 0) + task.budget.spent.get("aux_steps", 0)),
            "skew": skew(trees),
            "distinct_trees": float(len({tree for own in trees for tree in own})),
            "kept_trees": float(len(kept)),
            "patterns": float(len(model.patterns)),
            "largest_pattern": float(max(len(pattern.trees) for pattern in model.patterns)),
        }
    )

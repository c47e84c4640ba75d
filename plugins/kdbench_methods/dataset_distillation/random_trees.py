"""Random computation trees: as many bytes as may be kept, without a look at how often trees occur together.

Distinct trees of each class are drawn, all with the same probability, in sets of the same size; every set is met
equally often. What frequent sets of trees are worth beside it is what mining is worth.
"""

import numpy as np

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.blocks.mining import transactions_of
from kdbench.tracks.dataset_distillation.blocks.trees import Trees, computation_trees
from kdbench.tracks.dataset_distillation.distilled.trees import Pattern, TreeSet
from kdbench.tracks.dataset_distillation.evaluate.graphs import depth

CARD = Baseline(
    slug="random_trees",
    title="Random computation trees",
    track="dataset_distillation",
    tasks=["graphs"],
    tags=["graphs", "selection"],
)


class RandomTreesParams(Params):
    """Trees and sets."""

    hops: int = Field(0, ge=0, le=10, description="depth of the trees; 0: layers of the networks that learn from them")
    size: int = Field(3, ge=1, le=1000, description="trees of a set")


@hookimpl
def train(task, params):
    train, rng = task.kind.split("train"), task.rng("trees")
    hops, table = params.hops or depth(task), Trees()
    found = transactions_of(computation_trees(train, hops, table), train.y.tolist(), task.classes)
    task.meter_reals(len(train))
    sizes, trees = [len(graphs) for graphs in found], [np.array(sorted(set().union(*graphs))) for graphs in found]
    kept = TreeSet(hops, table, [], sizes)
    patterns = []
    while True:  # one set of each class in turns
        for label, own in enumerate(trees):
            chosen = rng.choice(own, min(params.size, len(own)), replace=False)
            patterns.append(Pattern(label, tuple(sorted(chosen.tolist())), 1))
        made = TreeSet(hops, table, patterns, sizes)
        if len(made.encode()) > task.kind.budget:
            break
        kept = made
    if not kept.patterns:
        raise UsageError(
            f"{task.kind.budget} bytes hold no {params.size} trees of each class", hint="use smaller sets of trees"
        )
    return kept

"""Search spaces of students, and the accuracies that some of their networks reach with and without distillation.

A space has the residual networks ``rn(w,a,b,c)`` of all combinations of widths and depths that stay under its caps. The
table of accuracies is made once per task and kept in the cache: each of its networks is trained by the labels alone and
by distillation from the task's teacher, from the same initialisation and on the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.task import count_parameters
from kdbench.tracks.vision.flops import multiply_adds
from kdbench.tracks.vision.models import Classifier, build
from kdbench.tracks.vision.spec import SearchSpec, VisionSpec

if TYPE_CHECKING:
    from kdbench.tracks.vision.batches import Batch
    from kdbench.tracks.vision.task import VisionTask

Genes = tuple[int, int, int, int]
"""Width and the blocks of the three stages."""


@cache
def parameters(arch: str, classes: int, size: int) -> int:
    """Parameters of an architecture."""
    with torch.random.fork_rng(devices=[]):
        return count_parameters(build(arch, classes, size))


@cache
def macs(arch: str, classes: int, size: int) -> float:
    """Multiply-adds per image of an architecture."""
    with torch.random.fork_rng(devices=[]):
        return multiply_adds(build(arch, classes, size), torch.zeros(1, 3, size, size)).total


class Space:
    """The networks that a search may choose from."""

    def __init__(self, search: SearchSpec, classes: int, size: int) -> None:
        """``classes`` and ``size`` (pixels) are those of the task. Raises ``UsageError`` where no network is left."""
        self.search, self.classes, self.size = search, classes, size
        if len(self.archs) < 2:
            raise UsageError(
                f"the search space has {len(self.archs)} network(s) under its caps; raise search.max_parameters or "
                "search.max_macs, or name smaller widths and depths"
            )

    @staticmethod
    def arch(genes: Genes) -> str:
        return f"rn({','.join(map(str, genes))})"

    def build(self, arch: str) -> Classifier:
        """A new network, on the CPU, initialised from the global generators."""
        return build(arch, self.classes, self.size)

    def parameters(self, arch: str) -> int:
        return parameters(arch, self.classes, self.size)

    def macs(self, arch: str) -> float:
        """Per image."""
        return macs(arch, self.classes, self.size)

    def _allowed(self, arch: str) -> bool:
        most, largest = self.search.max_macs, self.search.max_parameters
        return (largest is None or self.parameters(arch) <= largest) and (most is None or self.macs(arch) <= most)

    @cached_property
    def genes(self) -> dict[str, Genes]:
        """The choices of each network by architecture, in a fixed order."""
        widths, depths = sorted(set(self.search.widths)), sorted(set(self.search.depths))
        every: list[Genes] = list(product(widths, depths, depths, depths))
        return {arch: genes for genes in every if self._allowed(arch := self.arch(genes))}

    @property
    def archs(self) -> list[str]:
        """Every network under the caps."""
        return list(self.genes)

    def random(self, rng: np.random.Generator) -> str:
        """A network drawn uniformly."""
        return self.archs[int(rng.integers(len(self.archs)))]

    def neighbours(self, arch: str) -> list[str]:
        """Networks of the space that differ from ``arch`` in exactly one choice."""
        mine = self.genes[arch]
        return [
            other for other, genes in self.genes.items() if sum(a != b for a, b in zip(mine, genes, strict=True)) == 1
        ]

    def mutate(self, arch: str, rng: np.random.Generator) -> str:
        """One choice changed, uniformly among the changes that the caps allow; a random network if there are none."""
        near = self.neighbours(arch)
        return near[int(rng.integers(len(near)))] if near else self.random(rng)

    def listed(self) -> list[str]:
        """The networks of the table of accuracies: a random draw without replacement, the same for every job."""
        rng = np.random.default_rng([self.search.seed, len(self.archs)])
        count = min(self.search.table, len(self.archs))
        return [self.archs[i] for i in sorted(rng.permutation(len(self.archs))[:count])]


# --- trainings --------------------------------------------------------------------------------------------------------


def label_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the labels, as ``no_kd`` has it."""
    return cross_entropy(model(batch.x), batch.y)


def distillation_loss(
    task: VisionTask, weight: float = 0.9, temperature: float = 4.0
) -> Callable[[nn.Module, Batch], dict[str, Tensor]]:
    """(1 - weight) CE + weight T^2 KL(teacher || student), as ``kd`` has it."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch.x)
        return {
            "ce": (1 - weight) * cross_entropy(logits, batch.y),
            "kd": weight * kd_kl(logits, task.teacher_logits(batch), temperature),
        }

    return loss


@dataclass(frozen=True)
class Row:
    """One network of the table: top-1 by split, after training by the labels alone and by distillation."""

    arch: str
    vanilla: dict[str, float]
    distilled: dict[str, float]


def make_table(task: VisionTask, space: Space) -> list[Row]:
    """Train every listed network twice; ``task`` is one of the table's own, at the seed of the table."""
    steps, rows = space.search.steps, []
    for arch in space.listed():
        found = {}
        for kind, loss in (("vanilla", label_loss), ("distilled", distillation_loss(task))):
            model = task.student(arch)
            task.phase = "train"
            task.fit(model, loss, steps=steps, spend="aux_steps")
            task.phase = "evaluate"
            found[kind] = {"val": task.validate(model)["top1"], "test": task.score_test(model).metrics["top1"]}
        rows.append(Row(arch, **found))
    return rows


def load_table(spec: VisionSpec, store: Cache, space: Space, make_task: Callable[..., VisionTask]) -> list[Row]:
    """The table of a task, from the cache or made now. ``make_task(seed=, folder=)`` gives a task for its trainings."""

    def write(folder: Path) -> None:
        with TemporaryDirectory() as scratch:
            rows = make_table(make_task(seed=space.search.seed, folder=Path(scratch)), space)
        about: dict[str, Any] = {"recipe": spec.table_recipe(), "rows": [asdict(row) for row in rows]}
        (folder / "table.json").write_text(json.dumps(about, indent=1) + "\n")

    folder = store.get("table", spec.table_recipe(), write)
    return [Row(**row) for row in json.loads((folder / "table.json").read_text())["rows"]]

"""Training by domains: groups of images, episodes of one domain each, and the domains that only the test has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import JobError, UsageError
from kdbench.tracks.vision.batches import Batch, Split
from kdbench.tracks.vision.task import VisionTask


@dataclass
class Episode(Batch):
    """Images of one domain, the support set first."""

    which: int = 0
    """Number of the domain among the source domains."""
    support: int = 1
    """Images in the support set; the rest is the query set."""


class Episodes:
    """Episodes without end, each of a domain drawn uniformly and of images of it drawn without replacement.

    Sets are ``support`` and ``query`` images large; where a domain has fewer, they shrink in proportion.
    """

    def __init__(
        self, split: Split, domains: Sequence[Tensor], support: int, query: int, generator: torch.Generator
    ) -> None:
        """``domains`` are positions in the split. Raises ``UsageError`` for a domain of a single image."""
        if any(len(rows) < 2 for rows in domains):
            raise UsageError("a domain of one image has no support and query")
        self.split, self.domains, self.support, self.query = split, domains, support, query
        self.generator = generator

    def __iter__(self) -> Iterator[Episode]:
        while True:
            which = int(torch.randint(len(self.domains), (), generator=self.generator))
            rows = self.domains[which]
            chosen = torch.randperm(len(rows), generator=self.generator)[: self.support + self.query]
            batch = self.split.batch(rows[chosen.to(rows.device)])
            count = support_share(len(chosen), self.support, self.query)
            yield Episode(batch.x, batch.y, batch.index, which=which, support=count)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every episode is drawn anew from the generator, whose state is not part of this."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def support_share(count: int, support: int, query: int) -> int:
    """Support images among ``count`` >= 2 in the proportion of the two sets, with at least one for each."""
    return max(1, min(count - 1, round(count * support / (support + query))))


def source_domains(task: VisionTask) -> list[Tensor]:
    """Positions in the split ``train`` of each domain's images. Raises ``JobError`` for a task without domains."""
    groups = task.split("train").meta.get("group")
    if groups is None:
        raise JobError(f"{task.spec.name} has no domains; use a task of the family multidomain")
    return [(groups == group).nonzero().flatten() for group in groups.unique()]


def clusters_of(domains: int, clusters: int) -> list[list[int]]:
    """The numbers of the domains in ``clusters`` runs of consecutive ones, at most one run per domain.

    Raises ``UsageError`` where that makes a single one.
    """
    count = min(clusters, domains)
    if count < 2:
        raise UsageError(f"{domains} domain(s) make no two clusters; leaving an expert out needs another one")
    return [part.tolist() for part in torch.tensor_split(torch.arange(domains), count)]


def unseen_domains(task: VisionTask) -> dict[str, Split]:
    """Images of every domain of the test by name: ``held_out_<g>`` and, where the task has them, ``ood_<k>``.

    Raises ``TestDataError`` inside ``train``.
    """
    test = task.split("test")
    groups = test.meta["group"]
    held = {f"held_out_{int(group)}": test.take(groups == group) for group in groups.unique()}
    return held | {f"ood_{k}": task.split(f"ood_{k}") for k in range(1, 5) if task.spec.data.ood}

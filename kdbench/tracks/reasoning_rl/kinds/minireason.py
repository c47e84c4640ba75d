"""Procedural problems of several families."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdbench.task import seed_of
from kdbench.tracks.llm.data.encoding import Sequences, encode_pairs
from kdbench.tracks.reasoning_rl.data import contexts, mixture
from kdbench.tracks.reasoning_rl.data.families import FAMILIES
from kdbench.tracks.reasoning_rl.data.problems import Problem, draw
from kdbench.tracks.reasoning_rl.data.specs import MiniReasonData
from kdbench.tracks.reasoning_rl.data.verify import Verdict, verify
from kdbench.tracks.reasoning_rl.kinds.base import Reasoning
from kdbench.tracks.reasoning_rl.spec import ReasonStage

POOL = 30_000
"""Most rows that a stage draws; longer stages read them again."""


class MiniReason(Reasoning):
    """Problems that generators make; splits are kept apart by a hash of their canonical form."""

    data: MiniReasonData

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        beside = [name for name in ("ood_family", "retain") if getattr(self.data, name) is not None]
        return ("train", "val", "test", "ood_len", *beside)

    def plain(self, problem: Problem, rule: str | None = None) -> str:
        return contexts.plain(problem, rule)

    def with_reference(self, problem: Problem, reference: str | None = None) -> str:
        return contexts.with_reference(problem, reference)

    def with_reasons(self, problem: Problem, explanation: str) -> str:
        return contexts.with_reasons(problem, explanation)

    def verify(self, problem: Problem, text: str, rule: str | None = None) -> Verdict:
        return verify(problem, text, rule)

    def content(self, name: str) -> dict[str, Any]:
        return {"count": getattr(self.data, name if name in ("train", "val", "test") else "ood")}

    def problems_of(self, name: str) -> list[Problem]:
        data = self.data
        count = self.content(name)["count"]
        families = {"ood_family": (data.ood_family,), "retain": (data.retain,)}.get(name, data.families)
        levels = data.ood_levels if name == "ood_len" else data.levels
        split = name if name in ("train", "val") else "test"
        rng = np.random.Generator(np.random.PCG64(seed_of("minireason", data.seed, name)))
        return draw([FAMILIES[str(family)] for family in families], levels, split, count, rng)

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        return self.encode_problems(self.problems_of(name), "error")

    def rows_of_stage(self, stage: ReasonStage) -> Sequences:
        """Rows that a stage of a checkpoint trains on: new problems of the training split, behind their contexts."""
        data = self.data
        beside = [name for name in data.everything if name != data.retain]
        families = stage.families or (data.everything if stage.objective == "mix" else beside)
        rng = np.random.Generator(np.random.PCG64(seed_of("minireason", data.seed, stage.objective, stage.style)))
        count = min(POOL, stage.steps * stage.batch_size)
        problems = draw([FAMILIES[family] for family in families], data.levels, "train", count, rng)
        usual = 0.4 if stage.objective == "mix" else 1.0
        plain = usual if stage.plain is None else stage.plain
        prompts, responses = zip(*mixture.rows(problems, count, plain, stage.style, rng), strict=True)
        return encode_pairs(prompts, responses, self.prepared.tokenizer, 1 << 12)[0]

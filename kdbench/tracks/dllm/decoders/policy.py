"""A mask predictor with a policy: the usual decoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoders.base import Decoder, load_predictor, save_predictor
from kdbench.tracks.dllm.decoding import Stop, Written, decode
from kdbench.tracks.dllm.policies.base import DecodingPolicy

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


class PolicyDecoder(Decoder):
    """Writes block by block and commits what a policy says."""

    kind: ClassVar[str] = "policy"

    def __init__(
        self,
        net: nn.Module,
        policy: DecodingPolicy,
        sweep: Sequence[DecodingPolicy] | None = None,
        stop: Stop | None = None,
    ) -> None:
        """``sweep``: policies of the frontier, the most careful first; None: those that the policy names. ``stop``
        wins over the task's."""
        self.net, self.policy, self.stop = net, policy, stop
        self.sweep = list(policy.sweep() if sweep is None else sweep)

    def decode(
        self, prompts: Prompts, *, generator: torch.Generator | None = None, budget: int | None = None, **options: Any
    ) -> Written:
        if self.stop is not None:
            options["stop"] = self.stop
        return decode(self.net, prompts, self.policy, generator=generator, budget=budget, **options)

    def frontier(self) -> list[PolicyDecoder]:
        return [PolicyDecoder(self.net, policy, [policy], self.stop) for policy in self.sweep]

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net} | self.policy.networks()

    def save(self, folder: Path, task: DllmTask) -> None:
        """Network, policy, and the policies of the frontier."""
        save_predictor(self.net, folder / "net", task)
        policies = [self.policy, *self.sweep]
        for number, policy in enumerate(policies):
            policy.save(folder / f"policy-{number}")
        facts = {"policies": [policy.kind for policy in policies], "stop": self.stop}
        (folder / "decoding.json").write_text(json.dumps(facts) + "\n")

    @classmethod
    def load(cls, folder: Path, task: DllmTask) -> PolicyDecoder:
        facts = json.loads((folder / "decoding.json").read_text())
        policies = [
            DecodingPolicy.of_kind(kind).load(folder / f"policy-{number}")
            for number, kind in enumerate(facts["policies"])
        ]
        return cls(load_predictor(folder / "net", task), policies[0], policies[1:], facts["stop"])

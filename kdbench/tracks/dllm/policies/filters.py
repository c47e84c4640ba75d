"""A learned policy: a small network reads the confidences of a whole block and says which predictions are right."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import JobError
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import THRESHOLDS
from kdbench.tracks.dllm.policies.scores import best

if TYPE_CHECKING:
    from kdbench.tracks.dllm.decoding import View


class BlockFilter(nn.Module):
    """Confidences of a block in, one logit a position out: ``layers`` linear maps of its size with ReLU between."""

    def __init__(self, block: int, layers: int = 2) -> None:
        super().__init__()
        self.block, self.layers = block, layers
        maps: list[nn.Module] = [nn.Linear(block, block)]
        for _ in range(layers - 1):
            maps += [nn.ReLU(), nn.Linear(block, block)]
        self.net = nn.Sequential(*maps)

    def forward(self, confidence: Tensor) -> Tensor:
        """Logits (B, n) that a prediction is right, of confidences (B, n), n <= ``block``; missing ones count as 0.

        Raises ``JobError`` for longer blocks.
        """
        size = confidence.shape[1]
        if size > self.block:
            raise JobError(f"a filter of blocks of {self.block} positions was asked about {size}: train it for them")
        logits: Tensor = self.net(F.pad(confidence, (0, self.block - size)))
        return logits[:, :size]


def block_confidence(view: View) -> Tensor:
    """(B, size): probability of the prediction at *every* position of the block, visible ones included."""
    places = view.start[:, None] + torch.arange(view.size, device=view.x0.device)
    said = view.probs.gather(-1, view.x0.unsqueeze(-1)).squeeze(-1)
    return said.gather(1, places)


@dataclass(frozen=True, eq=False)
class Learned(DecodingPolicy):
    """All positions that a filter holds for right with a probability above ``theta``, and always the surest one.

    (Bao et al. 2025, Learning to Parallel, section 4.) The filter computes in float64, so that what it says of a row
    does not depend on the others.
    """

    net: BlockFilter = field(repr=False)
    theta: float = 0.9
    points: tuple[float, ...] = field(default=THRESHOLDS)
    """Thresholds of the frontier."""
    kind: ClassVar[str] = "learned"

    @torch.no_grad()
    def commit(self, view: View) -> Tensor:
        places = view.start[:, None] + torch.arange(view.size, device=view.x0.device)
        right = self.net(block_confidence(view).to(next(self.net.parameters()).dtype)).sigmoid() > self.theta
        accepted = torch.zeros_like(view.candidates).scatter(1, places, right)
        return accepted & view.candidates | best(view.conf, view.candidates)

    def sweep(self) -> list[DecodingPolicy]:
        return [Learned(self.net, theta, self.points) for theta in sorted({*self.points, self.theta}, reverse=True)]

    def networks(self) -> dict[str, nn.Module]:
        return {"filter": self.net}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"theta": self.theta, "points": self.points, "block": self.net.block, "layers": self.net.layers}
        (folder / "policy.json").write_text(json.dumps(facts) + "\n")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.net.state_dict().items()}
        save_file(tensors, folder / "filter.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Learned:
        """Read what :meth:`save` wrote, on the CPU."""
        facts = json.loads((folder / "policy.json").read_text())
        net = BlockFilter(facts["block"], facts["layers"]).double()
        net.load_state_dict(load_file(folder / "filter.safetensors"))
        return cls(net.requires_grad_(False).eval(), facts["theta"], tuple(facts["points"]))

"""A causal network that writes from left to right: the reference of quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.decoders.base import Decoder
from kdbench.tracks.dllm.decoding import Written, predictions
from kdbench.tracks.dllm.networks.transformer import Transformer, doubled

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


class Causal(Decoder):
    """One forward a token, up to the end; every forward reads the text anew, as those of mask predictors do."""

    kind: ClassVar[str] = "causal"

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    @torch.no_grad()
    def decode(
        self, prompts: Prompts, *, generator: torch.Generator | None = None, budget: int | None = None, **options: Any
    ) -> Written:
        """With a ``budget`` a text has no more tokens than that. Blocks mean nothing here."""
        length, temperature = options["length"], options.get("temperature", 0.0)
        was_training = self.net.training
        self.net.eval()
        net: Any = doubled(self.net) if options.get("double") and isinstance(self.net, Transformer) else self.net
        rows, window = len(prompts), prompts.ids.shape[1]
        device = prompts.ids.device
        tokens = torch.full((rows, length), net.eos, dtype=torch.int64, device=device)
        steps = torch.full_like(tokens, -1)
        confidence = torch.full((rows, length), torch.nan, device=device)
        forwards = torch.zeros(rows, dtype=torch.int64, device=device)
        forwarded = forwards.clone()
        alive = torch.arange(rows, device=device)
        for place in range(length if budget is None else min(length, budget)):
            ids = torch.cat([prompts.ids[alive], tokens[alive, :place]], dim=1)
            there = torch.cat([prompts.present[alive], ids.new_ones(len(alive), place, dtype=torch.bool)], dim=1)
            logits = net(ids, there)[:, window + place - 1]
            said, sure, _ = predictions(logits, temperature, generator)
            tokens[alive, place], confidence[alive, place], steps[alive, place] = said, sure.float(), place
            forwards[alive] += 1
            forwarded[alive] += there.sum(dim=1)
            alive = alive[said != net.eos]
            if not len(alive):
                break
        self.net.train(was_training)
        return Written(tokens, forwards, forwards.clone(), forwarded, steps, confidence)

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def save(self, folder: Path, task: DllmTask) -> None:
        """Nothing but the folder: the network is the task's."""
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def load(cls, folder: Path, task: DllmTask) -> Causal:
        return cls(task.causal_reference())

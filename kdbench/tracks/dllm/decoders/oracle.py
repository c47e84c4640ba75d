"""The bound on lossless parallel decoding: a decoder that knows which predictions are right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.blocks.oracle import oracle_decode
from kdbench.tracks.dllm.decoders.base import Decoder, load_predictor, save_predictor
from kdbench.tracks.dllm.decoding import Written, decode
from kdbench.tracks.dllm.policies.basic import TopK

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


class OracleDecoder(Decoder):
    """Writes what the network writes one token at a time, and commits every prediction that agrees with it.

    The forwards of the text it compares with are not counted: it is no way to decode but what one could reach.
    """

    kind: ClassVar[str] = "oracle"

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def decode(
        self, prompts: Prompts, *, generator: torch.Generator | None = None, budget: int | None = None, **options: Any
    ) -> Written:
        """With a ``budget`` it is not the oracle that decides but the confidence, as in every other decoder."""
        if budget is not None:
            return decode(self.net, prompts, TopK(1), generator=generator, budget=budget, **options)
        text = decode(self.net, prompts, TopK(1), generator=generator, **options)
        options.pop("temperature", None)
        return oracle_decode(self.net, prompts, text.tokens, **options)[0]

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def save(self, folder: Path, task: DllmTask) -> None:
        save_predictor(self.net, folder / "net", task)

    @classmethod
    def load(cls, folder: Path, task: DllmTask) -> OracleDecoder:
        return cls(load_predictor(folder / "net", task))

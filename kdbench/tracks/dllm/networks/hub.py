"""Masked-diffusion language models of the Hugging Face hub as mask predictors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.tracks.dllm.networks.base import Predictor
from kdbench.tracks.dllm.spec import Hub
from kdbench.tracks.llm.networks.hf import add_lora, load_model, load_tokenizer


class HubPredictor(Predictor):
    """A model of transformers, or of code that comes with its weights, whose forward gives ``.logits`` (B, T, V)."""

    def __init__(self, model: nn.Module, mask: int, eos: int, *, shift: bool = False) -> None:
        """``shift``: the model predicts position i + 1 at i; here position i predicts position i all the same."""
        super().__init__()
        self.model, self.mask, self.eos, self.shift = model, mask, eos, shift
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]

    def forward(self, ids: Tensor, present: Tensor | None = None) -> Tensor:
        """See :meth:`Predictor.forward`. The first position of a shifted model has the model's own first logits."""
        mask = None if present is None else present.long()
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        if self.shift:
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        impossible = torch.arange(logits.shape[-1], device=logits.device) == self.mask
        return logits.float().masked_fill(impossible, -torch.inf)


def special_tokens(hub: Hub, tokenizer: Any) -> tuple[int, int]:
    """Ids of mask and end. Raises ``JobError`` where neither task nor tokenizer names the mask."""
    mask = hub.mask_token if hub.mask_token is not None else tokenizer.mask_token_id
    if mask is None:
        raise JobError(f"the tokenizer of {hub.name!r} names no mask: say its id in teacher.mask_token")
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return int(mask), int(eos)


def load_hub(hub: Hub, *, device: str | torch.device, trainable: bool) -> Any:
    """The model itself, without adapters."""
    from transformers import AutoModel, AutoModelForMaskedLM

    auto = AutoModelForMaskedLM if hub.architecture == "masked" else AutoModel
    return load_model(hub.model_copy(update={"lora": None}), torch.device(device), trainable=trainable, auto=auto)


def load_predictor(hub: Hub, *, device: str | torch.device, trainable: bool, lora: Any = None) -> HubPredictor:
    """The model of a task; ``lora`` gives it adapters, and then they alone are trained."""
    model = load_hub(hub, device=device, trainable=trainable)
    if trainable and lora is not None:
        model = add_lora(model, hub.model_copy(update={"lora": lora}), task_type=None)
    mask, eos = special_tokens(hub, load_tokenizer(hub))
    return HubPredictor(model, mask, eos, shift=hub.shift)

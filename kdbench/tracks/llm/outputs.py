"""Teacher outputs on fixed data, computed once: the k most probable tokens of each position and the mass of all others.

An entry is keyed by everything that its values depend on: the teacher's weights, the tokens, k and the stored type.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.losses.binarised import log1mexp
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.spec import OUTPUT_SPLITS, Net

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask

LEAST = -100.0
"""Stored log-probability where the other tokens have none left."""
TEACHER_BATCH = 8


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights, first 16 digits."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


def top_events(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(N, k+1) float32 log-probabilities of the k best tokens and of all others together, and the (N, k) token ids."""
    logits = logits.float()
    k = min(k, logits.shape[-1] - 1)
    best, ids = logits.topk(k, dim=-1)
    total = logits.logsumexp(dim=-1, keepdim=True)
    rest = logits.scatter(-1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([best - total, rest - total], dim=-1).clamp(min=LEAST), ids


def bucketed(logits: Tensor, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, k+1) of the events that ``ids`` (N, k) name, and the NLL (N,) of ``targets``; float32.

    ``logits`` (N, V) float32. Computed from gathered values alone, without a second (N, V) tensor in the forward.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    best = logits.gather(-1, ids) - total
    rest = log1mexp(best.logsumexp(dim=-1, keepdim=True))
    nll = total.squeeze(-1) - logits.gather(-1, targets[:, None]).squeeze(-1)
    return torch.cat([best, rest], dim=-1), nll


class OutputCache:
    """Top-k outputs of a task's teacher on its training and validation rows."""

    def __init__(self, task: LLMTask) -> None:
        assert task.spec.outputs is not None
        self.task, self.k, self.dtype = task, task.spec.outputs.k, task.spec.outputs.dtype
        self._open: dict[str, tuple[Tensor, Tensor]] = {}

    def key(self, split: str) -> dict[str, Any]:
        """What the entry of a split is found by."""
        known = self.task.spec.outputs_key(split)
        if known is not None:
            return known
        return {
            "track": "llm",
            "weights": self._weights(),
            "tokens": self.task.split(split).digest,
            "k": self.k,
            "dtype": self.dtype,
        }

    def _weights(self) -> str:
        if isinstance(self.task.spec.teacher, Net):
            return stored_digest(self.task.teacher_folder())
        return weights_digest(self.task.teacher())

    def get(self, split: str) -> tuple[Tensor, Tensor]:
        """Log-probabilities (R, L-1, k+1) and ids (R, L-1, k) of a split, as stored; position t predicts token t+1."""
        if split not in self._open:
            folder = self.task.cache.get("outputs", self.key(split), lambda folder: self._make(split, folder))
            tensors = load_file(folder / "outputs.safetensors")
            self._open[split] = (tensors["logprobs"], tensors["ids"])
        return self._open[split]

    @torch.no_grad()
    def _make(self, split: str, folder: Path) -> None:
        sequences = self.task.split(split).sequences
        rows, length = sequences.ids.shape
        vocabulary = self.task.teacher_vocabulary
        kind = torch.uint16 if vocabulary <= 1 << 16 else torch.int32
        k = min(self.k, vocabulary - 1)
        logprobs = torch.zeros(rows, length - 1, k + 1, dtype=getattr(torch, self.dtype))
        ids = torch.zeros(rows, length - 1, k, dtype=torch.int32)
        for batch in sequences.batches(TEACHER_BATCH, split):
            values, best = top_events(self.task.scored_teacher(batch.to(self.task.device), metered=False), self.k)
            row, position = batch.scored.nonzero(as_tuple=True)
            logprobs[batch.index[row], position] = values.to(logprobs.dtype).cpu()
            ids[batch.index[row], position] = best.to(torch.int32).cpu()
        save_file({"logprobs": logprobs, "ids": ids.to(kind)}, folder / "outputs.safetensors")

    def scored(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Teacher's log-probabilities (N, k+1), normalised, and ids (N, k), on the scored positions of a batch.

        Rows with an index come from the cache, the others through the teacher.
        """
        known = (batch.index >= 0) & torch.tensor(batch.split in OUTPUT_SPLITS)
        live = ~known
        row, position = batch.scored.nonzero(as_tuple=True)
        k = min(self.k, self.task.teacher_vocabulary - 1)
        values = torch.empty(len(row), k + 1, device=row.device)
        ids = torch.empty(len(row), k, dtype=torch.int64, device=row.device)
        if bool(known.any()):
            logprobs, tokens = self.get(batch.split)
            here = known[row]
            where = batch.index[row[here]].cpu(), position[here].cpu()
            values[here] = logprobs[where].float().to(row.device)
            ids[here] = (
                tokens.view(torch.int16)[where].to(row.device).long() & 0xFFFF
                if tokens.dtype == torch.uint16
                else (tokens[where].to(row.device).long())
            )
            self.task.budget.spend("cached_teacher_queries", int(known.sum()))
        if bool(live.any()):
            here = live[row]
            values[here], ids[here] = top_events(self.task.scored_teacher(batch.rows(live)), self.k)
        return values.log_softmax(dim=-1), ids


def stored_digest(folder: Path) -> str:
    """Digest of the weights of a cache entry, from what was written when it was sealed; first 16 digits."""
    files = json.loads((folder / "entry.json").read_text())["files"]
    return str(files["model.safetensors"]["sha256"])[:16]

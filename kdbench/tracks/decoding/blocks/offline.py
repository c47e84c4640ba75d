"""What a target says of training rows, stored before a draft is trained: what online training spares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdbench.tracks.decoding.blocks.eagle import Taught, predicted, teach
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch


class OfflineTeacher:
    """Embeddings, features and logits of every row, in half precision in files of a folder."""

    def __init__(
        self,
        target: nn.Module,
        sequences: Sequences,
        folder: Path,
        batch_size: int,
        device: torch.device,
        seen: Callable[[int], None],
    ) -> None:
        """Run the target once over all rows; ``seen(n)`` is told of n rows more."""
        self.folder, self.device, self.bytes = folder, device, 0
        for batch in sequences.batches(batch_size, ""):
            batch = batch.to(device)
            taught = teach(target, batch)
            seen(len(batch))
            positions = predicted(batch).sum(dim=1).tolist()
            lengths = batch.attention_mask.sum(dim=1).tolist()
            rows = zip(batch.index.tolist(), lengths, taught.logits.split(positions), strict=True)
            for place, (row, length, logits) in enumerate(rows):
                for name, values in (
                    ("embeddings", taught.embeddings[place, :length]),
                    ("features", taught.features[place, :length]),
                    ("logits", logits),
                ):
                    array = values.half().cpu().numpy()
                    np.save(self._file(name, row), array)
                    self.bytes += array.nbytes

    def _file(self, name: str, row: int) -> Path:
        return self.folder / f"{name}-{row}.npy"

    def _read(self, name: str, batch: TextBatch) -> list[Tensor]:
        files = (self._file(name, row) for row in batch.index.tolist())
        return [torch.from_numpy(np.load(file)).float().to(self.device) for file in files]

    def __call__(self, batch: TextBatch) -> Taught:
        """What was stored of the rows of ``batch``, in float32."""
        embeddings, features = (pad_sequence(self._read(name, batch), True) for name in ("embeddings", "features"))
        return Taught(embeddings, features, torch.cat(self._read("logits", batch)))

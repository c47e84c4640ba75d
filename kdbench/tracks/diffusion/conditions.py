"""What a sample is asked to be: tokens (a class or a prompt), an image to start from, an embedded text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch; all parts are optional."""

    size: int
    """Rows."""
    tokens: Tensor | None = None
    """(B, L) int64; token 0 is the null of every slot."""
    image: Tensor | None = None
    """(B, C, H, W): a source image or a magnified one of low resolution."""
    embedding: Tensor | None = None
    """(B, L, D) embedded text."""
    empty: Tensor | None = None
    """(1, L, D) embedding of the empty text."""
    pooled: Tensor | None = None
    """(B, P) summary of the text, where a model reads one."""
    empty_pooled: Tensor | None = None
    """(1, P) summary of the empty text."""

    @classmethod
    def none(cls, size: int) -> Condition:
        """No condition, for ``size`` rows."""
        return cls(size)

    @classmethod
    def of_tokens(cls, tokens: Tensor) -> Condition:
        """From tokens (B, L) or classes (B,)."""
        rows = tokens if tokens.ndim == 2 else tokens[:, None]
        return cls(len(rows), tokens=rows)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, rows: Tensor | slice) -> Condition:
        """Chosen rows: int64 or bool (N,), or a slice."""
        taken = {name: None if part is None else part[rows] for name, part in self._parts().items()}
        size = (
            len(range(self.size)[rows]) if isinstance(rows, slice) else int(torch.arange(self.size)[rows.cpu()].numel())
        )
        return replace(self, size=size, **taken)

    def _parts(self) -> dict[str, Tensor | None]:
        return {"tokens": self.tokens, "image": self.image, "embedding": self.embedding, "pooled": self.pooled}

    def to(self, device: torch.device | str) -> Condition:
        every = {**self._parts(), "empty": self.empty, "empty_pooled": self.empty_pooled}
        return replace(self, **{name: None if part is None else part.to(device) for name, part in every.items()})

    def null(self) -> Condition:
        """The same rows asked for nothing: null tokens, the empty text; images stay."""
        return replace(
            self,
            tokens=None if self.tokens is None else torch.zeros_like(self.tokens),
            embedding=_filled(self.embedding, self.empty),
            pooled=_filled(self.pooled, self.empty_pooled),
        )

    def dropped(self, rows: Tensor) -> Condition:
        """With the null condition in ``rows`` (B,) bool: for the training of teachers."""
        null = self.null()
        changed = {}
        for name in ("tokens", "embedding", "pooled"):
            part = getattr(self, name)
            if part is not None:
                where = rows.view(-1, *[1] * (part.ndim - 1))
                changed[name] = torch.where(where, getattr(null, name), part)
        return replace(self, **changed)

    def repeat(self, times: int) -> Condition:
        """Each row ``times`` times, one after the other."""
        return self[torch.arange(self.size).repeat_interleave(times)]

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """One batch from several; all have the same parts."""
        first = parts[0]
        joined = {}
        for name, value in first._parts().items():
            if value is not None:
                joined[name] = torch.cat([getattr(part, name) for part in parts])
        return replace(first, size=sum(map(len, parts)), **joined)


def _filled(value: Tensor | None, empty: Tensor | None) -> Tensor | None:
    if value is None:
        return None
    if empty is None:
        raise ValueError("a condition with an embedded text has no embedding of the empty text")
    return empty.to(value).expand_as(value)

"""Two streams of one response in a single row: its blocks as they were guessed, and as they should be.

A row is ``prompt, noisy_0, clean_0, noisy_1, clean_1, ...`` (Hu et al., ICML 2026, Jacobi Forcing). The two
versions of a block have the same positions, those that it has behind the prompt, and neither sees the other: what
follows from the clean tokens, and what from the guesses, comes out of one forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.tracks.decoding.blocks.guesses import agreement
from kdbench.tracks.llm.networks.models import body_and_head
from kdbench.training.loaders import Order

PROMPT, NOISY, CLEAN, PADDING = 0, 1, 2, 3
"""What a token of a packed row belongs to."""

Context = Literal["noisy", "clean"]
"""Which version of the earlier blocks a guessed block sees."""


@dataclass(frozen=True)
class Example:
    """A prompt and the blocks that follow it, in two versions of the same length each."""

    prompt: list[int]
    noisy: list[list[int]]
    clean: list[list[int]]

    def __post_init__(self) -> None:
        if [len(block) for block in self.noisy] != [len(block) for block in self.clean] or not all(self.clean):
            raise ValueError("both versions have the same number of blocks, of the same lengths, none of them empty")
        if not self.prompt or not self.clean:
            raise ValueError("an example has a prompt, of one token at least, and a block at least")


class Pairs(NamedTuple):
    """Places (N,) of a packed batch, and the row of each."""

    row: Tensor
    """(N,) int64, ascending."""
    place: Tensor
    """(N,) int64: whose logits are meant."""
    other: Tensor
    """(N,) int64: the token that is to be predicted, or the place of the other stream at the same position."""


@dataclass
class Packed:
    """Packed rows, padded on the right to one length L."""

    ids: Tensor
    """(B, L) int64."""
    positions: Tensor
    """(B, L) int64: position of each token behind the start of its row; both streams of a block share theirs."""
    stream: Tensor
    """(B, L) int64: :data:`PROMPT`, :data:`NOISY`, :data:`CLEAN` or :data:`PADDING`."""
    block: Tensor
    """(B, L) int64: number of the block, -1 for prompt and padding."""
    blocks: Tensor
    """(B,) int64: blocks of each row."""
    next_prompt: Pairs
    """Next tokens of the prompt: the place before each, and the token."""
    next_clean: Pairs
    """Next tokens of the clean stream, the first one from the last place of the prompt."""
    guesses: Pairs
    """Places of the noisy stream from the first wrong guess of each block on, and their places in the clean one."""

    def __len__(self) -> int:
        return len(self.ids)

    def visible(self, context: Context = "noisy") -> Tensor:
        """(B, L, L) bool: which tokens [b, q, k] each token sees.

        The prompt sees itself causally, the clean stream the prompt and itself. A noisy block sees the prompt, itself
        causally and the earlier blocks: their noisy versions, or with ``context="clean"`` their clean ones. Padding
        sees itself alone.
        """
        q, k = self.stream[:, :, None], self.stream[:, None, :]
        earlier = self.positions[:, None, :] <= self.positions[:, :, None]
        seen = (k == PROMPT) | (k == q)
        if context == "clean":
            other = self.block[:, :, None] != self.block[:, None, :]
            seen = torch.where((q == NOISY) & other, (k == PROMPT) | (k == CLEAN), seen)
        own = torch.eye(self.ids.shape[1], dtype=torch.bool, device=self.ids.device)
        return (seen & earlier & (k != PADDING) & (q != PADDING)) | own

    def to(self, device: torch.device | str) -> Packed:
        if self.ids.device == torch.device(device):
            return self
        moved = {}
        for name, value in vars(self).items():
            moved[name] = Pairs(*(part.to(device) for part in value)) if isinstance(value, Pairs) else value.to(device)
        return Packed(**moved)


def pack(examples: Sequence[Example], *, pad: int, end: int) -> Packed:
    """Rows of some examples.

    Guesses are compared from the first one that differs from the clean block on; what would come after ``end`` is not
    compared, as no model is asked for it.
    """
    ids, positions, stream, block = [], [], [], []
    prompts: list[tuple[int, int, int]] = []
    cleans: list[tuple[int, int, int]] = []
    guesses: list[tuple[int, int, int]] = []
    for row, example in enumerate(examples):
        start = len(example.prompt)
        line, where = list(example.prompt), list(range(start))
        kinds, numbers = [PROMPT] * start, [-1] * start
        prompts += [(row, place, example.prompt[place + 1]) for place in range(start - 1)]
        last, position = start - 1, start
        for number, (noisy, clean) in enumerate(zip(example.noisy, example.clean, strict=True)):
            size, at = len(clean), len(line)
            line += [*noisy, *clean]
            where += 2 * list(range(position, position + size))
            kinds += [NOISY] * size + [CLEAN] * size
            numbers += [number] * (2 * size)
            before = [last, *range(at + size, at + 2 * size - 1)]
            cleans += [(row, place, token) for place, token in zip(before, clean, strict=True)]
            compared = range(agreement(noisy, clean), size)
            guesses += [(row, at + offset, at + size + offset) for offset in compared if clean[offset] != end]
            last, position = at + 2 * size - 1, position + size
        ids.append(line)
        positions.append(where)
        stream.append(kinds)
        block.append(numbers)
    blocks = torch.tensor([len(example.clean) for example in examples])
    return Packed(
        _padded(ids, pad),
        _padded(positions, 0),
        _padded(stream, PADDING),
        _padded(block, -1),
        blocks,
        _pairs(prompts),
        _pairs(cleans),
        _pairs(guesses),
    )


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


def _pairs(rows: Sequence[tuple[int, int, int]]) -> Pairs:
    return Pairs(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).unbind(dim=1))


def packed_logits(
    model: nn.Module, batch: Packed, places: Sequence[tuple[Tensor, Tensor]], context: Context = "noisy"
) -> list[Tensor]:
    """Logits (N, V) float32 at each set of rows (N,) and places (N,) in them; one forward.

    Where the model allows it the vocabulary-sized product is computed at those places only.
    """
    dtype = next(model.parameters()).dtype
    hidden = ~batch.visible(context)[:, None]
    mask = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": mask,  # of numbers: every implementation of attention takes it
        "position_ids": batch.positions,
        "use_cache": False,
    }
    parts = body_and_head(model)
    if parts is None:
        logits = model(**inputs).logits
        return [logits[rows, columns].float() for rows, columns in places]
    body, head = parts
    states = body(**inputs).last_hidden_state
    chosen = torch.cat([states[rows, columns] for rows, columns in places])
    return list(head(chosen).float().split([len(rows) for rows, _ in places]))


class PackedLoader:
    """Examples in random order, packed; each iteration is one epoch. Its position can be saved."""

    def __init__(
        self,
        examples: Sequence[Example],
        size: int,
        generator: torch.Generator,
        *,
        pad: int,
        end: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.examples, self.pad, self.end, self.device = examples, pad, end, device
        self._order = Order(len(examples), size, generator)

    def __iter__(self) -> Iterator[Packed]:
        return map(self._pack, self._order)

    def __len__(self) -> int:
        return len(self._order)

    def _pack(self, rows: Tensor) -> Packed:
        return pack([self.examples[row] for row in rows.tolist()], pad=self.pad, end=self.end).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return self._order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._order.load_state_dict(state)

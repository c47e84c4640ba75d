"""Which tokens of a response are masked: at random, nested, complementary, block by block."""

from __future__ import annotations

import torch
from torch import Tensor


def canvas_of(answer: Tensor, mask: Tensor, mask_id: int) -> Tensor:
    """``answer`` (B, L) with the mask token where ``mask`` (B, L) is true."""
    return answer.masked_fill(mask, mask_id)


def antithetic(rows: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(rows,) float32 numbers in [low, high), evenly spread: one uniform number decides them all, in random order.

    Each of them is uniform, and they cover the interval, which lowers the variance of a mean over them.
    """
    first = torch.rand((), generator=generator)
    places = (torch.randperm(rows, generator=generator) + first) / rows
    return low + (high - low) * places


def mask_random(answer: Tensor, ratio: Tensor | float, generator: torch.Generator) -> Tensor:
    """(B, L) bool on the device of ``answer``: each position with probability ``ratio`` ((B,) or a number).

    Rows of which nothing would be masked get one position at random.
    """
    rows, length = answer.shape
    share = torch.as_tensor(ratio, dtype=torch.float32).cpu().expand(rows)
    draws = torch.rand(rows, length, generator=generator)
    chosen = draws < share[:, None]
    least = draws == draws.amin(dim=1, keepdim=True)
    chosen |= least & ~chosen.any(dim=1, keepdim=True)
    return chosen.to(answer.device)


def nested_masks(length: int, student: Tensor, teacher: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masks (B, length) of ``student`` and ``teacher`` (B,) int64 positions, the first ones of one permutation a row.

    Where the teacher has no more positions than the student, its mask is a subset of the student's: it sees all that
    the student sees, and more.
    """
    rank = torch.rand(len(student), length, generator=generator).argsort(dim=1).argsort(dim=1)
    return rank < student.cpu()[:, None], rank < teacher.cpu()[:, None]


def complementary(mask: Tensor, within: Tensor) -> Tensor:
    """What ``mask`` leaves visible of the positions ``within``; all (B, L) bool."""
    return within & ~mask


def block_positions(length: int, block: int, number: Tensor) -> Tensor:
    """(B, length) bool: the positions of block ``number`` (B,), counted from 0."""
    place = torch.arange(length, device=number.device) // block
    return place == number[:, None]


def block_view(answer: Tensor, block: int, number: Tensor, inside: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """A response as a decoder meets it in block ``number`` (B,): canvas (B, L), and what is masked of the block (B, L).

    Blocks before it are visible, those after it masked; inside it what ``inside`` (B, L) says.
    """
    within = block_positions(answer.shape[1], block, number)
    after = torch.arange(answer.shape[1], device=answer.device) // block > number[:, None]
    masked = inside & within
    return canvas_of(answer, masked | after, mask_id), masked

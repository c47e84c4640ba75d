"""The guesses of Jacobi decoding: what of a text is settled, what is guessed behind it, and what waits to be reused."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.errors import UsageError


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common start of two sequences.

    >>> agreement([1, 2, 3], [1, 2, 4]), agreement([1], [1, 5]), agreement([], [7])
    (2, 1, 0)
    """
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


@dataclass(frozen=True)
class Window:
    """How much is guessed ahead."""

    block: int = 8
    """Tokens of a block (n)."""
    blocks: int = 2
    """Blocks that are guessed at a time at most (K); 1: a block at a time."""
    ratio: float = 0.85
    """Share of the newest block that has to be settled, or (behind another) agreed on, before the next one (r)."""
    pool: int = 4
    """Rejected guesses that are kept for recycling; 0: none."""

    def __post_init__(self) -> None:
        for name, least in (("block", 1), ("blocks", 1), ("pool", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is at least {least}, not {getattr(self, name)}")
        if not 0 < self.ratio <= 1:
            raise UsageError(f"ratio is above 0 and at most 1, not {self.ratio}")

    @property
    def enough(self) -> int:
        """Tokens of a block after which the next one is begun."""
        return math.ceil(self.ratio * self.block - 1e-9)


class Row:
    """One response while it is written."""

    def __init__(self, prompt: Sequence[int], window: Window, max_new: int, eos: int) -> None:
        self.prompt, self.window, self.max_new, self.eos = list(prompt), window, max_new, eos
        self.tokens: list[int] = []
        """What is settled."""
        self.guesses: list[int] = []
        """The tokens behind it, up to the end of the newest block."""
        self.others: list[list[int]] = []
        """Other guesses for the rest of the current block, out of the pool."""
        self.pool: deque[list[int]] = deque(maxlen=window.pool)
        self.forwards = self.recycled = self.spawned = 0
        self.iterates: list[list[list[int]]] = []
        """Of each block what it was before each forward in which it was the current one."""
        self._end = 0
        # guesses do not depend on what else is decoded, and need no generator: they decide the cost, not the text
        self._random = random.Random(repr(self.prompt))
        self._guess()

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.max_new or self.tokens[-1:] == [self.eos]

    @property
    def last(self) -> int:
        """The newest settled token, which the model has not read yet."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    @property
    def current(self) -> int:
        """Guesses that are of the current block."""
        size = self.window.block
        return min((len(self.tokens) // size + 1) * size - len(self.tokens), len(self.guesses))

    def branches(self) -> list[list[int]]:
        """What is read behind the last token: the guesses, and others in their place."""
        size, rest = self.window.block, self.current
        number = len(self.tokens) // size
        while len(self.iterates) <= number:
            self.iterates.append([])
        self.iterates[number].append([*self.tokens[number * size :], *self.guesses[:rest]])
        self.others = []
        for tail in reversed(self.pool):
            if self.last in tail:
                follow = tail[tail.index(self.last) + 1 :][:rest]
                other = [*follow, *self.guesses[len(follow) : rest]]
                if other != self.guesses[:rest] and other not in self.others:
                    self.others.append(other)
        return [self.guesses, *self.others]

    def settle(self, after: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Take what the model says after the last token and after each token of each branch.

        Returns the branch that was followed, and how many of its tokens were right.
        """
        self.forwards += 1
        guesses, said, current = self.guesses, list(after[0]), self.current
        best, count = 0, agreement(guesses, said)
        rejected = guesses[count:current]
        for number, (other, its) in enumerate(zip(self.others, after[1:], strict=True), start=1):
            right = agreement(other, its)
            if right > count:
                best, count = number, right
        path = self.others[best - 1] if best else guesses
        settled = [*path[:count], after[best][count]]
        said[: len(path)] = after[best][: len(path)]  # what is behind the block was read after the guesses alone
        if rejected and self._refined:
            self.pool.append(rejected)
        self.recycled += best > 0
        before = len(self.tokens)
        self.tokens += settled[: settled.index(self.eos) + 1] if self.eos in settled else settled
        del self.tokens[self.max_new :]
        if not self.done:
            self.guesses, self._refined = said[count + 1 : len(guesses)], True
            ahead = max(0, self._newest - before)
            self._extend(agreement(guesses[ahead:], after[0][ahead:]))
        return best, count

    @property
    def _newest(self) -> int:
        """Where the newest block begins."""
        return self._end - self.window.block

    def _extend(self, agreed: int) -> None:
        """Begin the next block where there is none, or where enough of the newest one is settled or agreed on."""
        length, size = len(self.tokens), self.window.block
        if length >= self._end:
            self._guess()
            return
        settled = length - self._newest
        active = self._end // size - length // size
        ready = (settled if settled > 0 else agreed) >= self.window.enough
        if ready and active < self.window.blocks and self._end < self.max_new:
            self.spawned += 1
            self._end += size
            self._fill()

    def _guess(self) -> None:
        self._end = (len(self.tokens) // self.window.block + 1) * self.window.block
        self.guesses, self._refined = [], False
        self._fill()

    def _fill(self) -> None:
        missing = min(self._end, self.max_new) - len(self.tokens) - len(self.guesses)
        self.guesses = [*self.guesses, *self._random.choices([*self.prompt, *self.tokens], k=missing)]

    def trajectory(self) -> list[list[list[int]]]:
        """Of each block of the finished response its iterates without repetition; the last one is the response's."""
        size, blocks = self.window.block, []
        for number, start in enumerate(range(0, len(self.tokens), size)):
            final = self.tokens[start : start + size]
            seen = self.iterates[number] if number < len(self.iterates) else []
            iterates = [iterate[: len(final)] for iterate in seen]
            # the last block may have been cut: its iterates are as long as what is left of it
            distinct = [iterate for place, iterate in enumerate(iterates) if iterate not in iterates[:place]]
            blocks.append([iterate for iterate in distinct if iterate != final] + [final])
        return blocks

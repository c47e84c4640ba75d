"""Jacobi decoding: a model guesses a block of tokens at once and refines its guesses until they hold.

Read the guesses, put in the place of each what the model says there, and repeat (Santilli et al., ACL 2023; Kou et al.,
ICML 2024, CLLM): every forward settles at least one more token, and the fixed point is what the model would have
written token by token. Of Hu et al. (ICML 2026, Jacobi Forcing) are two ways to settle more of them:

* *rejection recycling*: guesses that were rejected wait in a pool. Where one of them has the newest token of the text,
  what followed it there is verified beside the guesses of the block, in the same forward;
* *multi-block decoding*: when a block is nearly settled, the next one is already guessed and refined behind it. What
  its guesses agree on counts for nothing until the block before it is settled; then it is promoted and verified anew.

Sampling is exact, too. The random number that decides a position is fixed before the model is asked, so that the text
is a function of these numbers, and the fixed point is what the target alone would have sampled with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.tracks.decoding.blocks.guesses import Row, Window
from kdbench.tracks.decoding.decoders.base import Counter, Decoded, Decoder
from kdbench.tracks.decoding.decoders.session import Session
from kdbench.tracks.decoding.decoders.speculative import draw, probabilities


@torch.no_grad()
def jacobi(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    window: Window,
    *,
    max_new: int,
    eos: int,
    pad: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[list[Row], Counter]:
    """Continue each prompt by up to ``max_new`` tokens or to ``eos``; the finished rows, and what the model was asked.

    Sampling takes the numbers of ``generator`` in the order in which the model alone would. Raises ``ValueError`` where
    it has none.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling needs a generator")
    was_training = model.training
    model.eval()
    try:
        session = Session(model)
        rows = [Row(prompt, window, max_new, eos) for prompt in prompts]
        noise = _noise(len(rows), max_new, generator) if temperature > 0 else torch.zeros(len(rows), 0)
        session.prefill([row.prompt[:-1] for row in rows], pad)
        alive = list(range(len(rows)))
        while alive:
            places, left = _step(session, [rows[i] for i in alive], temperature, noise[alive], pad)
            session.keep(places)
            if len(left) < len(alive):
                alive = [alive[i] for i in left]
                if alive:
                    session.select(torch.tensor(left, dtype=torch.int64, device=session.device))
    finally:
        model.train(was_training)
    return rows, session.counter


def _noise(rows: int, length: int, generator: torch.Generator | None) -> Tensor:
    """(rows, length) float64 in [0, 1): the numbers by which the model alone would choose its tokens."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    deciding = torch.Generator().manual_seed(seed)
    steps = [torch.rand(rows, 1, generator=deciding, dtype=torch.float64) for _ in range(length)]
    return torch.cat(steps, dim=1)


def _step(
    session: Session, rows: Sequence[Row], temperature: float, noise: Tensor, pad: int
) -> tuple[Tensor, list[int]]:
    """One forward for all rows: which of its places (B, n) hold settled tokens, and the rows that go on."""
    read = [row.branches() for row in rows]
    lines = [
        [row.last, *(token for branch in branches for token in branch)]
        for row, branches in zip(rows, read, strict=True)
    ]
    width = max(map(len, lines))
    ids = torch.tensor([[*line, *[pad] * (width - len(line))] for line in lines])
    present = torch.tensor([[True] * len(line) + [False] * (width - len(line)) for line in lines])
    depth, branch = _places(read, width)
    arguments: dict[str, Any] = {"present": present.to(session.device)}
    if int(branch.max()) > 1:
        below = depth[:, None, :] <= depth[:, :, None]
        same = branch[:, :, None] == branch[:, None, :]
        visible = ((same & below) | (depth == 0)[:, None, :]).to(session.device)
        arguments |= {"visible": visible, "positions": session.lengths[:, None] + depth.to(session.device)}
    logits = session.forward(ids.to(session.device), **arguments)
    if temperature > 0:
        written = torch.tensor([len(row.tokens) for row in rows])[:, None]
        uniform = noise.gather(1, (written + depth).clamp_max(noise.shape[1] - 1))
        lines_of = zip(logits, uniform.to(logits.device), strict=True)  # float64: of one row at a time
        said = [draw(probabilities(line, temperature), numbers).tolist() for line, numbers in lines_of]
    else:
        said = logits.argmax(dim=-1).tolist()
    kept, left = torch.zeros(len(rows), width, dtype=torch.bool), []
    for number, (row, branches) in enumerate(zip(rows, read, strict=True)):
        starts, after, at = [], [], 1
        for line in branches:
            after.append([said[number][0], *said[number][at : at + len(line)]])
            starts.append(at)
            at += len(line)
        best, count = row.settle(after)
        kept[number, 0] = True
        kept[number, starts[best] : starts[best] + count] = True
        if not row.done:
            left.append(number)
    return kept.to(session.device), left


def _places(read: Sequence[Sequence[Sequence[int]]], width: int) -> tuple[Tensor, Tensor]:
    """How far each place (B, n) is behind the last token, and its branch counted from 1; 0 and 0 for the last token."""
    depth, branch = torch.zeros(len(read), width, dtype=torch.int64), torch.zeros(len(read), width, dtype=torch.int64)
    for number, branches in enumerate(read):
        at = 1
        for name, line in enumerate(branches, start=1):
            depth[number, at : at + len(line)] = torch.arange(1, len(line) + 1)
            branch[number, at : at + len(line)] = name
            at += len(line)
    return depth, branch


class Jacobi(Decoder):
    """Jacobi decoding with the target as it is."""

    kind: ClassVar[str] = "jacobi"

    def __init__(self, window: Window | None = None) -> None:
        self.window = window if window is not None else Window()

    def decode(
        self,
        target: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        max_new: int,
        eos: int,
        pad: int,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """As :meth:`Decoder.decode`; ``extra`` counts by prompt ``blocks``, and how often ``recycled``, ``spawned``."""
        options: dict[str, Any] = {"max_new": max_new, "eos": eos, "pad": pad}
        options |= {"temperature": temperature, "generator": generator}
        rows, counter = jacobi(self.writer(target), prompts, self.window, **options)
        extra = {name: [float(getattr(row, name)) for row in rows] for name in ("recycled", "spawned")}
        extra["blocks"] = [float(math.ceil(len(row.tokens) / self.window.block)) for row in rows]
        return Decoded([row.tokens for row in rows], [row.forwards for row in rows], extra, {"target": counter})

    def writer(self, target: nn.Module) -> nn.Module:
        """The model that writes."""
        return target

    def with_window(self, window: Window) -> Jacobi:
        """The same with another window."""
        return type(self)(window)

    def save(self, folder: Path) -> None:
        """The window; the target is the task's."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "window.json").write_text(json.dumps(asdict(self.window)) + "\n")

    @classmethod
    def load(cls, folder: Path, task: Any) -> Jacobi:
        return cls(_window(folder))


class JacobiModel(Jacobi):
    """Jacobi decoding with a model of its own, such as a target that was trained for it."""

    kind: ClassVar[str] = "jacobi_model"
    own_target: ClassVar[bool] = True

    def __init__(self, model: nn.Module, window: Window | None = None) -> None:
        super().__init__(window)
        self.model = model

    def writer(self, target: nn.Module) -> nn.Module:
        return self.model

    def with_window(self, window: Window) -> JacobiModel:
        return type(self)(self.model, window)

    def networks(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def save(self, folder: Path) -> None:
        """The window, and the model as transformers saves it."""
        super().save(folder)
        self.model.save_pretrained(folder / "model")

    @classmethod
    def load(cls, folder: Path, task: Any) -> JacobiModel:
        return cls(task.load_network(folder / "model"), _window(folder))


def _window(folder: Path) -> Window:
    return Window(**json.loads((folder / "window.json").read_text()))

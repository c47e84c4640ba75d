"""Decoding under an automaton: with the look-ahead of a hidden Markov model, or with its mask alone.

The next token is drawn from what is proportional to p(v | x_<t) C(v), where p is the target's and C(v) the probability
that the format can still be met within the tokens that are left (:mod:`kdbench.tracks.decoding.blocks.lookahead`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import JobError
from kdbench.tracks.decoding.blocks.automata import (
    DEAD,
    Automaton,
    compile_template,
    everything,
    token_texts,
)
from kdbench.tracks.decoding.blocks.hmm import HMM
from kdbench.tracks.decoding.blocks.lookahead import Lookahead
from kdbench.tracks.decoding.decoders.base import Decoded
from kdbench.tracks.decoding.decoders.formatted import FormatDecoder
from kdbench.tracks.decoding.decoders.session import Counter, Session
from kdbench.tracks.decoding.decoders.speculative import draw


@dataclass
class Rows:
    """What is known of the rows that are still being written, B of them."""

    number: Tensor
    """(B,) which prompt each is of."""
    states: Tensor
    """(B,) of the automaton."""
    remaining: Tensor
    """(B,) tokens that may still be written."""
    messages: Tensor | None
    """(B, H): P(h_t | x_<t), where there is a model."""

    def select(self, kept: Tensor) -> Rows:
        messages = None if self.messages is None else self.messages[kept]
        return Rows(self.number[kept], self.states[kept], self.remaining[kept], messages)


class Constrained(FormatDecoder):
    """Writes in a required format and reads the task alone. Without a format everything is accepted."""

    kind: ClassVar[str] = "constrained"

    def __init__(
        self,
        tokenizer: Any,
        model: HMM | None = None,
        *,
        eps: float = 0.0,
        reserve: bool = True,
        reads_prompt: bool = False,
        jump: bool = True,
    ) -> None:
        """Without ``model`` the automaton masks tokens and nothing looks ahead.

        ``eps`` is the mass of hidden states that is pruned. ``reserve`` (always so with a model) leaves enough tokens
        for the shortest way to meet the format. ``reads_prompt`` is for models of prompt and response together: the
        prompt is read before the response. With ``jump`` a token without an alternative takes no forward of its own:
        it is read together with the next one.
        """
        self.tokenizer, self.model, self.eps = tokenizer, model, eps
        self.reserve, self.reads_prompt, self.jump = reserve or model is not None, reads_prompt, jump
        self._texts: list[str] = []
        self._automata: dict[str, Automaton] = {}
        self._tables: dict[tuple[str, int], Lookahead] = {}

    def automaton(self) -> Automaton:
        """Of the required format, over the tokens of the tokenizer."""
        name = self.required.name if self.required is not None else ""
        if name not in self._automata:
            if not self._texts:
                self._texts += token_texts(self.tokenizer)
            made = everything(len(self._texts))
            if self.required is not None:
                made = compile_template(self.required.template, self._texts, self.tokenizer.eos_token_id)
            self._automata[name] = made
        return self._automata[name]

    def lookahead(self, length: int, device: torch.device) -> Lookahead | None:
        """The table for responses of up to ``length`` tokens; None without a model."""
        if self.model is None:
            return None
        key = (self.required.name if self.required is not None else "", length)
        if key not in self._tables:
            self._tables[key] = Lookahead(self.model.to(device), self.automaton().to(device), length)
        return self._tables[key]

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
        """As for every decoder; ``extra``: hidden states per forward (``kept``), tokens without a choice (``forced``).

        Raises ``JobError`` where the format takes more than ``max_new`` tokens, so that none of them could meet it.
        """
        if temperature > 0 and generator is None:
            raise ValueError("sampling needs a generator")
        shortest = int(self.automaton().distance[0])
        if self.reserve and shortest > max_new:
            raise JobError(f"the format takes at least {shortest} tokens, more than max_new = {max_new}")
        was_training = target.training
        target.eval()
        try:
            return _Run(self, target, prompts, max_new, eos, pad).decode(temperature, generator)
        finally:
            target.train(was_training)

    def networks(self) -> dict[str, nn.Module]:
        return {} if self.model is None else {"hmm": self.model}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        options = {name: getattr(self, name) for name in ("eps", "reserve", "reads_prompt", "jump")}
        (folder / "constrained.json").write_text(json.dumps({**options, "model": self.model is not None}) + "\n")
        if self.model is not None:
            values = {name: value.contiguous() for name, value in self.model.state_dict().items()}
            save_file(values, folder / "hmm.safetensors")

    @classmethod
    def load(cls, folder: Path, task: Any) -> Constrained:
        options = json.loads((folder / "constrained.json").read_text())
        model = HMM(**load_file(folder / "hmm.safetensors")).to(task.device) if options.pop("model") else None
        return cls(task.tokenizer, model, **options)


class _Run:
    """One call of :meth:`Constrained.decode`."""

    def __init__(
        self,
        decoder: Constrained,
        target: nn.Module,
        prompts: Sequence[Sequence[int]],
        max_new: int,
        eos: int,
        pad: int,
    ) -> None:
        self.decoder, self.eos, self.count = decoder, eos, len(prompts)
        self.counter = Counter()
        self.session = Session(target, self.counter)
        device = self.session.device
        self.automaton = decoder.automaton().to(device)
        self.ahead = decoder.lookahead(max_new, device)
        self.session.prefill([prompt[:-1] for prompt in prompts], pad)
        rows = torch.arange(self.count, device=device)
        full = torch.full_like(rows, max_new)
        self.rows = Rows(rows, torch.zeros_like(rows), full, self._first_messages(prompts, device))
        self.written: list[list[int]] = [[] for _ in prompts]
        self.unread = [[prompt[-1]] for prompt in prompts]
        """Tokens of each prompt's row that the target has not read."""
        self.forwards = [0] * self.count
        self.kept, self.forced = [0.0] * self.count, [0.0] * self.count

    def _first_messages(self, prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor | None:
        model = self.decoder.model
        if model is None:
            return None
        if not self.decoder.reads_prompt:
            return model.initial.expand(self.count, -1)
        # the start token is no text
        return torch.cat([model(torch.tensor([prompt[1:]], device=device)).following for prompt in prompts])

    def allowed(self, rows: Rows) -> Tensor:
        """(B, V) bool: tokens that the automaton lets each row write."""
        if self.ahead is not None:
            return self.ahead.allowed(rows.states, rows.remaining)
        after = self.automaton.delta[rows.states]
        if not self.decoder.reserve:
            return after != DEAD
        left = self.automaton.distance[after.clamp(min=0)]
        return (after != DEAD) & (left <= (rows.remaining - 1)[:, None])

    def decode(self, temperature: float, generator: torch.Generator | None) -> Decoded:
        self._jump()
        while len(self.rows.number):
            logits = self._forward()[:, : self.automaton.vocabulary]
            log_p = (logits / temperature if temperature > 0 else logits).log_softmax(-1)
            if self.ahead is not None:
                factor, used = self.ahead.reweigh(
                    self.rows.messages, self.rows.states, self.rows.remaining, self.decoder.eps
                )
                for row, number in zip(self.rows.number.tolist(), used.tolist(), strict=True):
                    self.kept[row] += number
            else:
                factor = torch.zeros_like(log_p).masked_fill_(~self.allowed(self.rows), -torch.inf)
            score = log_p + factor.to(log_p)
            if temperature > 0:
                noise = torch.rand(self.count, generator=generator, dtype=torch.float64).to(score.device)
                tokens = draw(score.double().softmax(-1), noise[self.rows.number])
            else:
                tokens = score.argmax(-1)
            self._write(torch.arange(len(tokens), device=tokens.device), tokens)
            self._drop()
            self._jump()
        steps = [max(1, number) for number in self.forwards]
        extra = {"forced": self.forced}
        if self.ahead is not None:
            extra["kept"] = [total / number for total, number in zip(self.kept, steps, strict=True)]
        return Decoded(self.written, self.forwards, extra, {"target": self.counter})

    def _forward(self) -> Tensor:
        """Logits (B, V) after what each row has not been read of yet."""
        waiting = [self.unread[row] for row in self.rows.number.tolist()]
        width = max(map(len, waiting))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in waiting], device=self.session.device)
        lengths = torch.tensor([len(row) for row in waiting], device=ids.device)
        present = torch.arange(width, device=ids.device) < lengths[:, None]
        logits = self.session.forward(ids, present=present)
        self.session.keep(present)
        for row in self.rows.number.tolist():
            self.unread[row] = []
            self.forwards[row] += 1
        return logits[torch.arange(len(waiting), device=ids.device), lengths - 1]

    def _write(self, places: Tensor, tokens: Tensor) -> None:
        """Add one token to each of some of the rows."""
        rows = self.rows
        for place, token in zip(places.tolist(), tokens.tolist(), strict=True):
            row = int(rows.number[place])
            self.written[row].append(token)
            self.unread[row].append(token)
        rows.states = rows.states.scatter(0, places, self.automaton.delta[rows.states[places], tokens])
        rows.remaining = rows.remaining.index_add(0, places, -torch.ones_like(places))
        if rows.messages is not None:
            rows.messages = rows.messages.index_copy(
                0, places, self.ahead.advance(rows.messages[places], tokens, self.decoder.eps)
            )

    def _drop(self) -> None:
        """Rows that are finished leave."""
        rows = self.rows
        ended = torch.tensor([self.written[row][-1:] == [self.eos] for row in rows.number.tolist()])
        alive = (~ended.to(rows.states.device) & (rows.remaining > 0)).nonzero().squeeze(1)
        if len(alive) < len(rows.number):
            if len(alive):
                self.session.select(alive)
            self.rows = rows.select(alive)

    def _jump(self) -> None:
        """Write what has no alternative, for as long as there is none."""
        while self.decoder.jump and len(self.rows.number):
            allowed = self.allowed(self.rows)
            places = (allowed.sum(-1) == 1).nonzero().squeeze(1)
            if not len(places):
                return
            for row in self.rows.number[places].tolist():
                self.forced[row] += 1
            self._write(places, allowed[places].to(torch.int8).argmax(-1))
            self._drop()

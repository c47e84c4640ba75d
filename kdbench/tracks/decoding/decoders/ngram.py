"""An n-gram model as draft: proposals from counts, without any network.

P_n(w | h) interpolates the counts of the context h of n - 1 tokens with the model of one order less, by the weights of
Witten and Bell (1991): with c(h w) the count of w after h, c(h) its sum over w and T(h) the number of different tokens
that were seen after h,

    P_n(w | h) = (c(h w) + T(h) P_{n-1}(w | h')) / (c(h) + T(h)),

h' being h without its first token. Where h was never seen, P_n = P_{n-1}; below the order 1 is the uniform
distribution, so that no token is impossible.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.decoding.decoders.session import Counter
from kdbench.tracks.decoding.decoders.speculative import Proposer, Speculative, draw, probabilities
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch


class NGram(nn.Module):
    """Counts of each order, as buffers: there is nothing to learn by gradients, and no parameter."""

    def __init__(self, order: int, vocabulary: int, tables: dict[str, Tensor] | None = None) -> None:
        """``order`` is n; ``tables`` are buffers that another one had. Raises ``UsageError`` where keys do not fit."""
        super().__init__()
        if order < 1:
            raise UsageError(f"the order of an n-gram model is at least 1, not {order}")
        if (vocabulary + 1) ** order >= 2**63:
            raise UsageError(f"{vocabulary} tokens are too many for an n-gram model of order {order}: take a lower one")
        self.order, self.vocabulary = order, vocabulary
        for name, table in (tables if tables is not None else self._empty()).items():
            self.register_buffer(name, table)

    def _empty(self) -> dict[str, Tensor]:
        none, tables = torch.zeros(0, dtype=torch.int64), {}
        for n in range(1, self.order + 1):
            tables |= {f"contexts_{n}": none, f"starts_{n}": none.new_zeros(1)}
            tables |= {f"tokens_{n}": none, f"counts_{n}": none.double()}
        return tables

    @property
    def nothing(self) -> int:
        """Stands in a context for what is before the start of a text."""
        return self.vocabulary

    @classmethod
    def fit(cls, sequences: Sequences, order: int, vocabulary: int) -> NGram:
        """The counts of the scored tokens of some rows; their contexts reach back into the prompts."""
        model = cls(order, vocabulary)
        ids = sequences.ids.long()
        columns = torch.arange(ids.shape[1])
        scored = (columns >= sequences.starts[:, None]) & (columns < sequences.lengths[:, None])
        before = nn.functional.pad(ids, (order - 1, 0), value=model.nothing)
        windows = before.unfold(1, order, 1)[scored]  # (events, order): context and token
        for n in range(1, order + 1):
            keys, counts = torch.unique(model._key(windows[:, order - n :]), return_counts=True)
            contexts, sizes = torch.unique_consecutive(keys // (vocabulary + 1), return_counts=True)
            starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
            tables = {"contexts": contexts, "starts": starts, "tokens": keys % (vocabulary + 1), "counts": counts}
            for name, table in tables.items():
                setattr(model, f"{name}_{n}", table.double() if name == "counts" else table)
        return model

    def _key(self, windows: Tensor) -> Tensor:
        """One number (N,) for each row of tokens (N, k); rows that begin alike are next to each other in order."""
        key = windows.new_zeros(len(windows))
        for column in windows.unbind(dim=1):
            key = key * (self.vocabulary + 1) + column
        return key

    @torch.no_grad()
    def distribution(self, contexts: Tensor) -> Tensor:
        """Float64 probabilities (N, V) of the token after each context (N, order - 1), the newest token last."""
        rows = torch.arange(len(contexts), device=contexts.device)
        p = torch.full((len(contexts), self.vocabulary), 1 / self.vocabulary, dtype=torch.float64, device=rows.device)
        for n in range(1, self.order + 1):
            known, starts = self.get_buffer(f"contexts_{n}"), self.get_buffer(f"starts_{n}")
            if not len(known):
                continue
            key = self._key(contexts[:, contexts.shape[1] - (n - 1) :])
            place = torch.searchsorted(known, key).clamp_max(len(known) - 1)
            seen = known[place] == key
            place, row = place[seen], rows[seen]
            types = starts[place + 1] - starts[place]
            # the entries of all these contexts, one after the other
            of = torch.repeat_interleave(torch.arange(len(place), device=rows.device), types)
            entry = torch.arange(len(of), device=rows.device) - (types.cumsum(0) - types)[of] + starts[place][of]
            counts = torch.zeros(len(place), self.vocabulary, dtype=torch.float64, device=rows.device)
            counts[of, self.get_buffer(f"tokens_{n}")[entry]] = self.get_buffer(f"counts_{n}")[entry]
            weight = types.double()[:, None]
            p[row] = (counts + weight * p[row]) / (counts.sum(dim=1, keepdim=True) + weight)
        return p

    def scored_logits(self, batch: TextBatch) -> Tensor:
        """Log-probabilities (N, V), float32, at the positions of a batch whose next token is scored."""
        before = nn.functional.pad(batch.input_ids, (self.order - 1, 0), value=self.nothing)
        windows = before[:, :-1].unfold(1, self.order, 1)[batch.scored]
        return self.distribution(windows[:, 1:]).log().float()

    @property
    def entries(self) -> int:
        """Different n-grams of all orders that have a count."""
        return sum(len(self.get_buffer(f"counts_{n}")) for n in range(1, self.order + 1))


class NGramProposer(Proposer):
    """Proposes from an :class:`NGram`; a forward is one look at its tables."""

    def __init__(self, model: NGram) -> None:
        self.model, self.counter = model, Counter()

    def start(self, prompts: Sequence[Sequence[int]], pad: int) -> None:
        device, length = self.model.get_buffer("starts_1").device, self.model.order - 1
        filler = [self.model.nothing] * length
        tails = [[*filler, *prompt[:-1]][len(prompt) - 1 :] for prompt in prompts]
        self.history = torch.tensor(tails, dtype=torch.int64, device=device).reshape(len(prompts), length)

    def propose(self, last: Tensor, count: int, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
        started = time.perf_counter()
        self.text, distributions = torch.cat([self.history, last[:, None]], dim=1), []
        for step in range(count):
            contexts = self.text[:, self.text.shape[1] - (self.model.order - 1) :]
            distributions.append(probabilities(self.model.distribution(contexts).log(), temperature))
            token = draw(distributions[-1], uniform[:, step])
            self.text = torch.cat([self.text, token[:, None]], dim=1)
            self.counter.forwards += 1
            self.counter.tokens += len(last)
        self.counter.seconds += time.perf_counter() - started
        return self.text[:, self.text.shape[1] - count :], torch.stack(distributions, dim=1)

    def accept(self, tokens: Tensor, count: Tensor) -> None:
        length = self.model.order - 1
        columns = torch.arange(length, device=tokens.device)
        # what precedes the next token: it ends with the last accepted proposal, or with the token before all of them
        self.history = self.text.gather(1, count[:, None] + 1 + columns)

    def select(self, rows: Tensor) -> None:
        self.history = self.history[rows]


class NGramDraft(Speculative):
    """Speculative sampling with an n-gram model as draft."""

    kind: ClassVar[str] = "ngram"
    draft: NGram

    def proposer(self, target: nn.Module) -> Proposer:
        return NGramProposer(self.draft)

    def save(self, folder: Path) -> None:
        """The tables of counts, and what they are of."""
        if self.lenience is not None:
            raise UsageError("a decoder with lenience cannot be saved; save the lossless one")
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.draft.named_buffers()), folder / "ngram.safetensors")
        shape = {"order": self.draft.order, "vocabulary": self.draft.vocabulary}
        (folder / "ngram.json").write_text(json.dumps(shape) + "\n")

    @classmethod
    def load(cls, folder: Path, task: Any) -> NGramDraft:
        shape = json.loads((folder / "ngram.json").read_text())
        draft = NGram(**shape, tables=load_file(folder / "ngram.safetensors")).to(task.device)
        return cls(draft, task.spec.evaluation.gamma)

"""Metrics of language models and classifiers: teacher-forced, generated, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor, nn

from kdbench.tracks.llm.data.encoding import Sequences, TextBatch, encode
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.generation import Responses, generate
from kdbench.tracks.llm.heads import LARGE
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """ECE with equal-width bins: mean over predictions of |accuracy - confidence| of their bin, in [0, 1].

    ``confidence`` (N,) in [0, 1], ``correct`` (N,) 0 or 1. Naeini et al., AAAI 2015.

    >>> expected_calibration_error(np.array([1.0, 1.0]), np.array([1, 0]))
    0.5
    """
    if len(confidence) == 0:
        return math.nan
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.bincount(place, weights=correct, minlength=bins) - np.bincount(place, weights=confidence, minlength=bins)
    return float(np.abs(gaps)[counts > 0].sum() / len(confidence))


@dataclass
class Forced:
    """What a model says of given tokens, teacher-forced; N scored tokens of R rows."""

    nll: np.ndarray
    """(N,) nats."""
    correct: np.ndarray
    """(N,) 1 where the most probable token is the right one."""
    confidence: np.ndarray
    """(N,) probability of the most probable token."""
    row: np.ndarray
    """(N,) row of each token."""
    forward_kl: float = math.nan
    """Mean KL(teacher || student) in nats per token, where a teacher was given."""
    reverse_kl: float = math.nan

    @property
    def loss(self) -> float:
        """Mean NLL in nats per token."""
        return float(self.nll.mean())

    def per_row(self) -> np.ndarray:
        """(R,) mean NLL of each row."""
        return np.bincount(self.row, weights=self.nll) / np.maximum(np.bincount(self.row), 1)


def small_pieces(batch: TextBatch, model: nn.Module) -> Iterable[TextBatch]:
    """The batch itself, or its rows in as few pieces as have fewer than :data:`heads.LARGE` logits each, or one row."""
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 1)
    rows = max(1, LARGE // (batch.input_ids.shape[1] * vocabulary))
    return [batch] if rows >= len(batch) else [batch.rows(part) for part in torch.arange(len(batch)).split(rows)]


@torch.no_grad()
def forced(
    model: nn.Module,
    batches: Iterable[TextBatch],
    device: torch.device,
    teacher: Callable[[TextBatch], Tensor] | None = None,
) -> Forced:
    """Teacher-forced evaluation. ``teacher(batch)`` gives logits (N, V) on the same positions."""
    model.eval()
    parts: list[list[Tensor]] = [[], [], [], []]
    divergences, rows = torch.zeros(2, dtype=torch.float64), 0
    for piece in (piece for batch in batches for piece in small_pieces(batch, model)):
        batch = piece.to(device)
        logits, targets = scored_logits(model, batch).float(), targets_of(batch)
        log_q = logits.log_softmax(dim=-1)
        best, guess = log_q.max(dim=-1)
        row = batch.scored.nonzero()[:, 0] + rows
        nll = -log_q.gather(-1, targets[:, None]).squeeze(1)
        for part, values in zip(parts, (nll, (guess == targets).float(), best.exp(), row), strict=True):
            part.append(values.cpu())
        rows += len(batch)
        if teacher is not None:
            log_p = teacher(batch).float().log_softmax(dim=-1)
            width = min(log_p.shape[-1], log_q.shape[-1])
            gap = log_p[:, :width] - log_q[:, :width]
            divergences[0] += (log_p[:, :width].exp() * gap).sum().cpu()
            divergences[1] -= (log_q[:, :width].exp() * gap).sum().cpu()
    nll, correct, confidence, row = (torch.cat(part).numpy() for part in parts)
    known = teacher is not None
    kl, rkl = ((divergences / len(nll)).tolist()) if known else (math.nan, math.nan)
    return Forced(nll.astype(np.float64), correct, confidence, row, kl, rkl)


def respond(
    model: nn.Module, prompts: Sequence[str], tokenizer: Any, *, max_new: int, batch_size: int, **sampling: Any
) -> tuple[list[str], Responses]:
    """Text that a model writes after each prompt, and its tokens. ``sampling`` as in :func:`generation.generate`."""
    start, texts, all_tokens, all_logprobs = start_id(tokenizer), [], [], []
    encoded = [[start, *ids] for ids in encode(prompts, tokenizer)]
    for begin in range(0, len(encoded), batch_size):
        part = generate(
            model,
            encoded[begin : begin + batch_size],
            eos=tokenizer.eos_token_id,
            pad=pad_id(tokenizer),
            max_new=max_new,
            **sampling,
        )
        all_tokens += part.tokens
        all_logprobs += part.logprobs
        texts += tokenizer.batch_decode(part.tokens, skip_special_tokens=True)
    return texts, Responses(all_tokens, all_logprobs)


def exact_matches(items: Sequence[Item], responses: Sequence[str]) -> np.ndarray:
    """(N,) 1 where the family's checker accepts the response."""
    return np.array([item.check(text) for item, text in zip(items, responses, strict=True)], dtype=np.float64)


_ROUGE = RougeScorer(["rougeL"])


def rouge_l(references: Sequence[str], response: str) -> float:
    """Largest ROUGE-L F-measure of a response over its references, in [0, 1]; by the package ``rouge_score``."""
    return float(_ROUGE.score_multi(references, response)["rougeL"].fmeasure)


def distinct(responses: Sequence[Sequence[Any]], n: int = 2) -> float:
    """Distinct n-grams over all n-grams of all responses, in [0, 1]; 0 without any. Li et al., NAACL 2016."""
    grams = [tuple(row[i : i + n]) for row in responses for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur in ``labels`` of the F1 of each, in [0, 1]."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


@torch.no_grad()
def class_logits(model: nn.Module, sequences: Sequences, split: str, device: torch.device, size: int = 256) -> Tensor:
    """(N, C) float32 logits of a classifier on a whole split, on the CPU."""
    model.eval()
    parts = []
    for batch in sequences.batches(size, split):
        batch = batch.to(device)
        parts.append(model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float().cpu())
    return torch.cat(parts)


@torch.no_grad()
def class_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy, macro_f1, nll (nats), ece of logits (N, C) against labels (N,)."""
    probabilities = logits.softmax(dim=-1)
    confidence, predicted = probabilities.max(dim=-1)
    correct = (predicted == labels).double().numpy()
    return {
        "accuracy": float(correct.mean()),
        "macro_f1": macro_f1(predicted.numpy(), labels.numpy()),
        "nll": float(token_nll(logits, labels).mean()),
        "ece": expected_calibration_error(confidence.double().numpy(), correct),
    }

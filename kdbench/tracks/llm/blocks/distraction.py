"""Irrelevant sentences in instructions: whether they are found, and whether a model minds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score
from torch import nn

from kdbench.tracks.llm.blocks.counterfactuals import Context, contexts_of, rows_of
from kdbench.tracks.llm.blocks.sensitivity import attention_mass
from kdbench.tracks.llm.data.instruct import Item, distract, generate
from kdbench.tracks.llm.data.knowledge import Knowledge
from kdbench.tracks.llm.data.specs import InstructData
from kdbench.tracks.llm.evaluate import exact_matches, respond

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def detection(
    contexts: Sequence[Context], scores: Sequence[NDArray[np.float64]], flags: Sequence[NDArray[np.bool_]]
) -> dict[str, float]:
    """How well small scores (n,) and flags (n,) of each context find the tokens that are known to be irrelevant.

    Of the contexts with such tokens and others: ``detection_auc``, the mean over contexts of the area under the ROC
    curve of the negative score, 0.5 for a score that knows nothing; ``detection_auc_lower``, the lower end of its 95 %
    interval (Student t over contexts); ``detection_precision`` and ``detection_recall`` of the flags, and
    ``distractor_share``, the precision of flags at random. Empty where there is no such context or a single one.
    """
    known = [np.array(context.distractor) for context in contexts]
    mixed = [i for i, irrelevant in enumerate(known) if irrelevant.any() and not irrelevant.all()]
    if len(mixed) < 2:
        return {}
    areas = np.array([roc_auc_score(known[i], -scores[i]) for i in mixed])
    truth, found = np.concatenate([known[i] for i in mixed]), np.concatenate([flags[i] for i in mixed])
    margin = student_t.ppf(0.975, len(areas) - 1) * areas.std(ddof=1) / len(areas) ** 0.5
    return {
        "detection_auc": float(areas.mean()),
        "detection_auc_lower": float(areas.mean() - margin),
        "detection_precision": float(truth[found].mean()) if found.any() else 0.0,
        "detection_recall": float(found[truth].mean()),
        "distractor_share": float(truth.mean()),
    }


def distracted(data: InstructData) -> tuple[list[Item], list[Item]]:
    """``data.test`` test items without a distractor, and the same items with one each; the same for every model."""
    plain = generate(data.model_copy(update={"distractors": 0.0}), "test", data.test)
    rng, knowledge, items = np.random.default_rng([data.seed, 0xD15]), Knowledge.make(data.persons, data.seed), []
    for item in plain:
        instruction, span = distract(rng, data, item.instruction, item.family, item.level, knowledge)
        items.append(
            Item(instruction, item.response, item.answers, item.probabilities, item.family, item.level, distractor=span)
        )
    return plain, items


def resistance(task: LLMTask, model: nn.Module) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Exact match on :func:`distracted` items: in all, and by family.

    ``exact_match_plain`` without and ``exact_match_distracted`` with the irrelevant sentence; ``distraction`` is the
    share of the items that are answered right without it and wrong with it.
    """
    plain, items = distracted(task.spec.data)
    options = {"max_new": task.spec.evaluation.max_new, "batch_size": task.spec.evaluation.batch_size}
    right = [
        exact_matches(rows, respond(model, [item.prompt for item in rows], task.tokenizer, **options)[0])
        for rows in (plain, items)
    ]
    families = np.array([item.family for item in items])
    table = {
        str(name): {"plain": float(right[0][families == name].mean()), "with": float(right[1][families == name].mean())}
        for name in sorted(set(families.tolist()))
    }
    values = {
        "exact_match_plain": float(right[0].mean()),
        "exact_match_distracted": float(right[1].mean()),
        "distraction": float(((right[0] == 1) & (right[1] == 0)).mean()),
    }
    return values, table


def attention_on_distractors(task: LLMTask, model: nn.Module) -> float:
    """Mean share of attention in [0, 1] that the answers to :func:`distracted` items pay to the irrelevant sentence."""
    contexts = contexts_of(distracted(task.spec.data)[1], task.tokenizer)
    sequences, parts = rows_of(contexts, task.tokenizer), []
    model.eval()
    for rows in torch.arange(len(contexts)).split(task.spec.evaluation.batch_size):
        batch = sequences.batch(rows, "").to(task.device)
        where = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        for i, row in enumerate(rows.tolist()):
            context = contexts[row]
            where[i, context.begin : context.end] = torch.tensor(context.distractor, device=where.device)
        parts.append(attention_mass(model, batch, where))
    return float(torch.cat(parts).mean())

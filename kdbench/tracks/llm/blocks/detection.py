"""How well a number for each text tells texts in the distribution from texts out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from kdbench.tracks.llm.evaluate import forced
from kdbench.tracks.llm.generation import as_batch, generate
from kdbench.tracks.llm.networks.tokenizers import pad_id

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask

RECALL = 0.95
"""Share of the texts out of the distribution that ``far95`` asks to be found."""


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Measures of a score that is larger outside the distribution, from scores (N,) inside and (M,) outside.

    auroc: probability that a text outside has the larger score, ties by half. aupr_out, aupr_in: area under the curve
    of precision over recall, texts outside or inside being what is looked for. far95: share of the texts inside that
    raise an alarm where at least 95 % of those outside do. All in [0, 1]; raises ``ValueError`` where one side is
    empty or a score is NaN.

    >>> detection(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    {'auroc': 1.0, 'aupr_out': 1.0, 'aupr_in': 1.0, 'far95': 0.0}
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

    if not len(inside) or not len(outside):
        raise ValueError(f"both sides need texts: {len(inside)} inside, {len(outside)} outside the distribution")
    scores = np.concatenate([inside, outside])
    foreign = np.repeat([False, True], [len(inside), len(outside)])

    def area(positive: np.ndarray, values: np.ndarray) -> float:
        precision, recall, _ = precision_recall_curve(positive, values)
        return float(auc(recall, precision))

    alarms, found, _ = roc_curve(foreign, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(foreign, scores)),
        "aupr_out": area(foreign, scores),
        "aupr_in": area(~foreign, -scores),
        "far95": float(alarms[found >= RECALL][0]),
    }


def machine_text(task: LLMTask, model: nn.Module, writer: nn.Module) -> dict[str, float]:
    """How well a model's perplexity tells human text from what ``writer`` wrote in its place; tests of text tasks only.

    Each test row in the distribution is continued after its prompt by as many tokens as a row has at most, sampled at
    temperature 1 (stream ``machine``). As in Wu et al. (ACL 2023, section 5) machine text is what is expected:
    ``auroc_machine`` is the :func:`detection` of the human continuations, ``pair_accuracy`` the share of pairs whose
    human side has the larger perplexity, ties by half.
    """
    split = task.split("test")
    inside = torch.tensor([i for i, row in enumerate(split.rows) if row.domain in task.spec.data.inside])
    prompts, pad, size = task.prompts_of("test", inside), pad_id(task.tokenizer), task.spec.evaluation.batch_size
    starts = torch.tensor([len(ids) for ids in prompts.ids], dtype=torch.int32)
    human = replace(split.sequences.rows(inside), starts=starts)
    written = generate(
        writer,
        prompts.ids,
        eos=task.tokenizer.eos_token_id,
        pad=pad,
        max_new=int((human.lengths - starts).max()),
        temperature=1.0,
        generator=task.generator("machine"),
    )
    machine = as_batch(prompts, written, pad)
    parts = [machine.rows(part) for part in torch.arange(len(inside)).split(size)]
    of_machine = forced(model, parts, task.device).per_row()
    of_human = forced(model, human.batches(size, ""), task.device).per_row()
    pairs = (of_human > of_machine) + 0.5 * (of_human == of_machine)
    return {"auroc_machine": detection(of_machine, of_human)["auroc"], "pair_accuracy": float(pairs.mean())}

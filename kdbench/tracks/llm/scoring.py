"""Official metrics of each kind of task, on the test data."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from kdbench.errors import JobError
from kdbench.task import Scores, seed_of
from kdbench.tracks.llm.data.encoding import Sequences, encode, encode_pairs, pack
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.data.prepared import Split
from kdbench.tracks.llm.evaluate import (
    Forced,
    class_logits,
    class_metrics,
    distinct,
    exact_matches,
    expected_calibration_error,
    forced,
    respond,
    rouge_l,
)
from kdbench.tracks.llm.tokenizers import pad_id, start_id

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def sequences_for(task: LLMTask, split: Split, tokenizer: Any) -> Sequences:
    """Tokens of a split, encoded anew where the model has a tokenizer of its own."""
    if tokenizer is task.tokenizer:
        return split.sequences
    if split.kind is Item:
        prompts, responses = [item.prompt for item in split.rows], [item.response for item in split.rows]
        return encode_pairs(prompts, responses, tokenizer, 1 << 20)[0]
    rows = [[start_id(tokenizer), *ids] for ids in encode([chunk.text for chunk in split.rows], tokenizer)]
    return pack(rows, [1] * len(rows), pad_id(tokenizer))


def score(task: LLMTask, model: nn.Module) -> Scores:
    """Official metrics and per-example values, by kind of data."""
    if task.classifies:
        scores = score_classes(task, model)
        return Scores(official(task, scores.metrics), scores.examples)
    scores = score_text(task, model) if task.spec.data.kind.endswith("text") else score_instruct(task, model)
    if task.spec.evaluation.harness:
        scores.metrics.update(task.harness(model))
    return Scores(official(task, scores.metrics), scores.examples)


def official(task: LLMTask, values: dict[str, float]) -> dict[str, float]:
    """The metrics that the task names, out of all that were measured. Raises ``JobError`` where one is missing."""
    wanted = [metric.name for metric in task.spec.all_metrics()]
    missing = [name for name in wanted if name not in values]
    if missing:
        raise JobError(
            f"task {task.spec.name} names metrics that its test data do not give: {', '.join(missing)} "
            f"(measured: {', '.join(sorted(values))})"
        )
    return {name: values[name] for name in wanted}


def teacher_forced(task: LLMTask, model: nn.Module, split: str) -> tuple[Forced, Sequences]:
    """Model on the references of a split, under its own tokenizer."""
    sequences = sequences_for(task, task.split(split), task.tokenizer_of(model))
    return forced(model, sequences.batches(task.spec.evaluation.batch_size, split), task.device), sequences


def divergences(task: LLMTask, model: nn.Module, split: str) -> dict[str, float]:
    """Mean KL of each direction between teacher and model on the references of a split, nats per scored token.

    Raises ``JobError`` for a model with a tokenizer of its own: the two then do not speak of the same events.
    """
    if task.tokenizer_of(model) is not task.tokenizer:
        raise JobError("divergences need a model with the teacher's tokenizer")
    batches = task.split(split).sequences.batches(task.spec.evaluation.batch_size, split)
    result = forced(model, batches, task.device, task.scored_teacher)
    return {"kl_teacher_student": result.forward_kl, "kl_student_teacher": result.reverse_kl}


def token_metrics(result: Forced, reference_tokens: int) -> dict[str, float]:
    """Metrics of given tokens. Perplexity counts the tokens of the task's tokenizer, whatever the model's own is."""
    total = float(result.nll.sum())
    return {
        "loss": total / reference_tokens,
        "perplexity": math.exp(min(total / reference_tokens, 700.0)),
        "token_accuracy": float(result.correct.mean()),
        "ece": expected_calibration_error(result.confidence, result.correct),
    }


def scored_tokens(sequences: Sequences) -> np.ndarray:
    """(N,) scored tokens of each row."""
    counts: np.ndarray = (sequences.lengths - sequences.starts).numpy()
    return counts


def score_text(task: LLMTask, model: nn.Module) -> Scores:
    """perplexity (also by domain), loss (nats/token), bits_per_byte, token_accuracy, ece, worst_domain_perplexity."""
    result, _ = teacher_forced(task, model, "test")
    split = task.split("test")
    reference = scored_tokens(split.sequences)
    metrics = token_metrics(result, int(reference.sum()))
    size = np.array([len(chunk.text.encode()) for chunk in split.rows])
    sums = np.bincount(result.row, weights=result.nll, minlength=len(split))
    metrics["bits_per_byte"] = float(sums.sum() / size.sum() / math.log(2))
    domains = np.array([chunk.domain for chunk in split.rows])
    by_domain = {}
    for name in sorted(set(domains.tolist())):
        chosen = domains == name
        by_domain[name] = math.exp(min(float(sums[chosen].sum() / reference[chosen].sum()), 700.0))
    if len(by_domain) > 1:
        metrics |= {f"perplexity/{name}": value for name, value in by_domain.items()}
        metrics["worst_domain_perplexity"] = max(by_domain.values())
    return Scores(metrics, {"loss": sums / reference, "bits_per_byte": sums / size / math.log(2)})


def score_instruct(task: LLMTask, model: nn.Module) -> Scores:
    """exact_match, its parts, ROUGE-L, and the token metrics of the reference responses.

    ``loss_ood`` and ``token_accuracy_ood`` are those of the references of the families that nothing is trained on.

    ``rouge_l``: on procedural data the mean over sampled responses (temperature 1) to the grammar family, on other
    data greedy responses to all items.
    """
    options = task.spec.evaluation
    tokenizer = task.tokenizer_of(model)
    items: list[Item] = task.split("test").rows
    limits = {"max_new": options.max_new, "batch_size": options.batch_size}
    texts, _ = respond(model, [item.prompt for item in items], tokenizer, **limits)
    right = exact_matches(items, texts)
    result, _ = teacher_forced(task, model, "test")
    metrics = token_metrics(result, int(scored_tokens(task.split("test").sequences).sum()))
    metrics |= {
        "exact_match": float(right.mean()),
        "distinct_2": distinct([text.split() for text in texts]),
        "response_tokens": sum(len(ids) for ids in encode(texts, task.tokenizer)) / len(items),
    }
    examples = {"exact_match": right, "loss": result.per_row()}
    if task.spec.data.kind == "hf-instruct":
        rouge = np.array([rouge_l(item.answers, text) for item, text in zip(items, texts, strict=True)])
        metrics["rouge_l"] = float(rouge.mean())
        return Scores(metrics, examples | {"rouge_l": rouge})
    parts: dict[str, list[float]] = defaultdict(list)
    for item, value in zip(items, right.tolist(), strict=True):
        parts[f"exact_match/{item.family}"].append(value)
        if item.distractor is not None:
            parts["exact_match_distractors"].append(value)
    metrics |= {name: float(np.mean(values)) for name, values in parts.items()}
    if "ood" in task._data.names:
        # no model answers families that none was trained on, so what moves is how it takes the right answer
        unseen, _ = teacher_forced(task, model, "ood")
        of_unseen = token_metrics(unseen, int(scored_tokens(task.split("ood").sequences).sum()))
        metrics |= {f"{name}_ood": of_unseen[name] for name in ("loss", "token_accuracy")}
    grammar = [item for item in items if item.family == "rewrite"]
    if grammar and options.rouge_seeds:
        values = []
        for number in range(options.rouge_seeds):
            generator = torch.Generator().manual_seed(seed_of(task.spec.name, "rouge", number))
            prompts = [item.prompt for item in grammar]
            sampled, _ = respond(model, prompts, tokenizer, temperature=1.0, generator=generator, **limits)
            values += [rouge_l(item.answers, text) for item, text in zip(grammar, sampled, strict=True)]
        metrics["rouge_l"] = float(np.mean(values))
    return Scores(metrics, examples)


def score_classes(task: LLMTask, model: nn.Module) -> Scores:
    """accuracy, macro_f1, nll, ece, and agreement with the teacher."""
    sequences = task.split("test").sequences
    assert sequences.labels is not None
    logits = class_logits(model, sequences, "test", task.device)
    metrics = class_metrics(logits, sequences.labels)
    teacher = class_logits(task.teacher(), sequences, "test", task.device)
    predicted = logits.argmax(dim=-1)
    metrics["agreement"] = float((predicted == teacher.argmax(dim=-1)).double().mean())
    return Scores(metrics, {"accuracy": (predicted == sequences.labels).double().numpy()})

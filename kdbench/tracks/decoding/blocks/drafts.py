"""What methods that train drafts share: two models on the same positions, a model's own text, what drafts are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.losses.divergences import Divergence
from kdbench.losses.tokens import seq_mean
from kdbench.task import count_parameters, seed_of
from kdbench.tracks.decoding.blocks.acceptance import (
    alpha_empirical,
    alpha_exact,
    expected_speedup,
    expected_tau,
    lenience,
)
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.base import Decoded
from kdbench.tracks.decoding.decoders.companions import OwnTarget
from kdbench.tracks.decoding.decoders.speculative import Speculative
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.generation import Responses, as_batch
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll
from kdbench.tracks.llm.networks.tokenizers import pad_id

# --- training ---------------------------------------------------------------------------------------------------------


def target_logits(task: Any, target: nn.Module, batch: TextBatch) -> Tensor:
    """(N, V) float32 logits of a frozen target, the task's or another, on the scored positions; ``teacher_queries``."""
    if target is task.teacher():
        found: Tensor = task.scored_teacher(batch)
        return found
    with torch.no_grad():
        logits = scored_logits(target, batch).float()
    if task.phase == "train":
        task.budget.spend("teacher_queries", len(batch))
    return logits


def draft_loss(
    task: Any, target: nn.Module, divergence: Divergence, temperature: float = 1.0
) -> Callable[[nn.Module, TextBatch], Tensor]:
    """Mean over sequences of the mean divergence over their tokens, of the target and the draft, as a loss of ``fit``.

    ``E_{x, y} [1/|y| sum_t Div(p(. | x, y_<t), q(. | x, y_<t))]`` (Zhou et al. 2024, DistillSpec).
    """

    def loss(draft: nn.Module, batch: TextBatch) -> Tensor:
        theirs, mine = target_logits(task, target, batch), scored_logits(draft, batch).float()
        values = divergence(mine, theirs, temperature=temperature)
        return seq_mean(values, batch.scored.nonzero()[:, 0])

    return loss


# --- what drafts are worth --------------------------------------------------------------------------------------------


@torch.no_grad()
def acceptance(task: Any, draft: nn.Module, target: nn.Module, split: str, temperature: float = 1.0) -> float:
    """As ``task.acceptance``, for the task's target or another one: on text that this one has written itself."""
    if target is task.teacher():
        found: float = task.acceptance(draft, split, temperature)
        return found
    prompts = task.prompts_of(split, torch.arange(len(task.split(split))))
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"max_new": task.spec.evaluation.max_new, "temperature": temperature}
    batch = task.rollout(target, prompts, generator=generator, **options)
    was_training = draft.training
    draft.eval()
    try:
        mine = scored_logits(draft, batch)
    finally:
        draft.train(was_training)
    return float(alpha_exact(mine, target_logits(task, target, batch), temperature=temperature).mean())


def report(task: Any, decoder: Speculative, speedup: float) -> dict[str, float]:
    """What drafts are compared by on the test prompts, beside the official measures.

    * ``alpha_exact``, ``alpha_exact_greedy``: mean of 1 - TVD(p, q), or share of equal choices, over the positions of
      text that the *target* has written at temperature 1, or greedily;
    * ``alpha_empirical``: share of the tested proposals that were accepted in sampling at temperature 1, with its
      binomial standard error ``alpha_empirical_error``; ``alpha_expected``: mean of 1 - TVD(p, q) where they were
      tested; ``acceptance_deviation``: distance of the two in standard errors;
    * ``tau/gamma5``, ``tau_t1/gamma5``, ...: block efficiency by proposals a round, greedy and at temperature 1, and
      ``tau_expected/gamma5`` what independent acceptance at ``alpha_exact`` would give at temperature 1.

    Of a decoder with a target of its own, that one counts. The artifact ``speedup.json`` has the measured ``speedup``
    beside the one that acceptance predicts.
    """
    target = decoder.target if isinstance(decoder, OwnTarget) else task.teacher()
    values = {"alpha_exact": acceptance(task, decoder.draft, target, "test")}
    values["alpha_exact_greedy"] = acceptance(task, decoder.draft, target, "test", 0.0)
    prompts, counts = task.test_prompts(), dict.fromkeys(("accepted", "tested", "expected"), 0.0)
    for gamma in task.spec.evaluation.gammas:
        each = decoder.at(gamma)
        generator = torch.Generator().manual_seed(seed_of(task.stream("eval"), gamma))
        sampled = task.decode(each, prompts, temperature=1.0, generator=generator)
        values[f"tau/gamma{gamma}"] = task.decode(each, prompts).block_efficiency
        values[f"tau_t1/gamma{gamma}"] = sampled.block_efficiency
        values[f"tau_expected/gamma{gamma}"] = expected_tau(values["alpha_exact"], gamma)
        for name in counts:
            counts[name] += sum(sampled.extra[name])
    rate = alpha_empirical([counts["accepted"]], [counts["tested"]])
    expected = counts["expected"] / counts["tested"]
    values |= {"alpha_empirical": rate.value, "alpha_empirical_error": rate.error, "alpha_expected": expected}
    # a rate of 0 or 1 has no error of its own: then that of the expectation
    error = max(rate.error, (expected * (1 - expected) / rate.trials) ** 0.5, 1e-9)
    values["acceptance_deviation"] = abs(rate.value - expected) / error
    task.artifact("speedup.json").write_text(json.dumps(clocked(task, decoder, speedup), indent=1) + "\n")
    return values


def clocked(task: Any, decoder: Speculative, speedup: float) -> dict[str, float]:
    """The speed-up that greedy acceptance and the measured cost of a draft forward predict, beside the measured one.

    One prompt at a time. ``cost`` is the time of a forward of the draft in those of a verification by the target.
    """
    outs = [task.decode(decoder, [prompt]) for prompt in task.test_prompts()[: task.spec.evaluation.timed]]
    each = {}
    for name in ("draft", "target"):
        counters = [out.counters[name] for out in outs]
        each[name] = sum(counter.seconds for counter in counters) / sum(counter.forwards for counter in counters)
    alpha = alpha_empirical(*([sum(out.extra[name]) for out in outs] for name in ("accepted", "tested"))).value
    cost = each["draft"] / each["target"]
    return {
        "gamma": decoder.gamma,
        "alpha_greedy": alpha,
        "cost": cost,
        "predicted": expected_speedup(alpha, decoder.gamma, cost),
        "measured": speedup,
        "draft_seconds": each["draft"],
        "target_seconds": each["target"],
    }


def quality(task: Any, written: Decoded, prompts: list[list[int]]) -> dict[str, float]:
    """``target_nll`` of responses to the first test prompts, nats per token, and ``exact_match`` where that exists."""
    texts = Responses(written.tokens, [[0.0] * len(row) for row in written.tokens])
    rows = task.prompts_of("test", torch.arange(len(prompts)))
    batch = as_batch(rows, texts, pad_id(task.tokenizer)).to(task.device)
    nll = token_nll(task.scored_teacher(batch), targets_of(batch))
    values = {"target_nll": float(nll.mean())}
    if hasattr(task.kind, "right"):
        said = task.tokenizer.batch_decode(written.tokens, skip_special_tokens=True)
        values["exact_match"] = float(task.kind.right(task.split("test").rows[: len(prompts)], said).mean())
    return values


def lossy_curve(
    task: Any, decoder: Speculative, functions: Iterable[str], levels: Iterable[float], count: int
) -> list[dict[str, Any]]:
    """Quality against forwards of lossy decoding at temperature 1, of the first ``count`` test prompts.

    One point per function and level of lenience (:func:`~.acceptance.lenience`), the first of them lossless: ``tau``
    (tokens per forward of the target), ``forwards`` per prompt, and what :func:`quality` says of the text.
    """
    prompts, points = task.test_prompts()[:count], []
    levels = [level for level in levels if level < 1]
    for function, level in [("lossless", 1.0), *((f, level) for f in functions for level in levels)]:
        lossy = decoder.at(decoder.gamma, None if level == 1 else lenience(function, level))
        written = task.decode(lossy, prompts, temperature=1.0, generator=task.generator("eval"))
        point: dict[str, Any] = {"function": function, "level": level, "tau": written.block_efficiency}
        point["forwards"] = sum(written.forwards) / len(prompts)
        points.append(point | quality(task, written, prompts))
    return points


def staged_report(task: Any, decoder: OwnTarget) -> dict[str, float]:
    """What a smaller target with its draft is worth in the place of the task's target, greedy, on the test prompts.

    ``own_lossless``: 1 where it writes exactly what its target writes alone; ``flops_ratio``: multiplications of target
    and draft, prefill included, in those of the task's target alone; ``target_nll``: of what it writes, under the
    task's target; ``alone/target_nll`` (and ``exact_match``): the same of what the task's target writes itself.
    """
    prompts, own = task.test_prompts(), task.decode(decoder, task.test_prompts())
    alone, large = task.decode(Autoregressive(), prompts), count_parameters(task.teacher())
    options = {"max_new": task.spec.evaluation.max_new, "eos": task.tokenizer.eos_token_id}
    again = Autoregressive().decode(decoder.target, prompts, pad=pad_id(task.tokenizer), **options)
    spent = sum(
        count_parameters(network) * (own.counters[name].tokens + own.counters[name].prefill_tokens)
        for name, network in decoder.networks().items()
    )
    read = alone.counters["target"].tokens + alone.counters["target"].prefill_tokens
    values = {"own_lossless": float(own.tokens == again.tokens), "flops_ratio": spent / (large * read)}
    values |= quality(task, own, prompts)
    return values | {f"alone/{name}": value for name, value in quality(task, alone, prompts).items()}

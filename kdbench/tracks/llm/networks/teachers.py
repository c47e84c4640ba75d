"""Networks that are trained before the tasks begin: teachers and the students' initialisations.

They are stored in float16 and the task's network *is* the stored one, rounding included, so that a shipped entry and
one that was just made are used in the same way.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.errors import Diverged
from kdbench.losses.logits import UNLABELLED
from kdbench.spec import Recipe
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.networks.models import round_to_half, scored_logits, tag_logits, tags_of, targets_of
from kdbench.tracks.llm.spec import Net, Stage
from kdbench.training.loop import make_optimizer, rate

log = logging.getLogger(__name__)


def stage_recipe(stage: Stage) -> Recipe:
    """AdamW (0.9, 0.98), 5 % warm-up, cosine to a tenth, gradient norm at most 1."""
    return Recipe(
        optimizer="adamw",
        lr=stage.lr,
        betas=(0.9, 0.98),
        weight_decay=stage.weight_decay,
        schedule="cosine",
        warmup=0.05,
        final_lr=0.1,
        clip=1.0,
        batch_size=stage.batch_size,
    )


def stage_loss(model: nn.Module, batch: TextBatch, objective: str) -> torch.Tensor:
    """Mean cross entropy of the scored tokens, of the classes or of the tags."""
    if objective == "tag":
        return nn.functional.cross_entropy(tag_logits(model, batch), tags_of(batch), ignore_index=UNLABELLED)
    if objective == "classify":
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return nn.functional.cross_entropy(logits.float(), batch.labels)
    return nn.functional.cross_entropy(scored_logits(model, batch).float(), targets_of(batch))


@torch.enable_grad()  # a teacher may be asked for, and so trained, where gradients are off
def train_stage(
    model: nn.Module,
    sequences: Sequences,
    stage: Stage,
    generator: torch.Generator,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train in place for ``stage.steps`` on rows in random order; ``on_step(step, loss)`` at every fiftieth step."""
    recipe = stage_recipe(stage)
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    optimizer = make_optimizer(parameters, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: rate(min(n, stage.steps - 1), stage.steps, recipe)
    )
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(1, stage.steps + 1):
        while len(order) < stage.batch_size:
            order = torch.cat([order, torch.randperm(len(sequences), generator=generator)])
        rows, order = order[: stage.batch_size], order[stage.batch_size :]
        loss = stage_loss(model, sequences.batch(rows).to(device), stage.objective)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 50 == 0 or step == stage.steps:
            value = loss.item()
            if not torch.isfinite(loss):
                raise Diverged(f"the {stage.objective} loss is {value} at step {step} of {stage.steps}")
            if on_step is not None:
                on_step(step, value)
    model.eval()


def make(
    folder: Path,
    net: Net,
    build: Callable[[], nn.Module],
    sequences: Callable[[str], Sequences],
    tokenizer: Any,
    seed: int,
    device: torch.device,
    measure: Callable[[nn.Module], Mapping[str, float]] | None = None,
) -> None:
    """Train a network through its stages and write it: float16 weights, configuration, tokenizer, ``training.json``.

    ``sequences(objective)`` gives the rows of a stage. ``measure`` says how good the stored network is.
    """
    started = time.perf_counter()
    history: list[dict[str, float | str]] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = build().to(device)
        generator = torch.Generator().manual_seed(seed)
        for stage in net.stages:

            def note(step: int, loss: float, stage: Stage = stage) -> None:
                history.append({"objective": stage.objective, "step": step, "loss": round(loss, 4)})
                log.info("%s step %d of %d: loss %.3f", stage.objective, step, stage.steps, loss)

            train_stage(model, sequences(stage.objective), stage, generator, on_step=note)
    round_to_half(model)
    seconds = time.perf_counter() - started
    values = dict(measure(model)) if measure is not None else {}
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {"seconds": round(seconds, 1), "measured": values, "history": history}
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")

"""Checkpoints that are trained here: base, fine-tuned, reinforced, experts and peers, each stage from the one before.

Every stage is a cache entry of its own, so that a reinforced teacher goes on from the fine-tuned one that another
name stands for. Weights are stored in float16 and the checkpoint *is* the stored network, rounding included.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdbench.losses.policy_gradient import aggregate, clipped
from kdbench.task import seed_of
from kdbench.tracks.llm.networks.models import round_to_half
from kdbench.tracks.llm.networks.teachers import train_stage
from kdbench.tracks.reasoning_rl.blocks.recipes import advantages, fit_on_policy, policy_logp
from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts
from kdbench.tracks.reasoning_rl.spec import Policy, ReasonStage

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask

log = logging.getLogger(__name__)


def folder_of(task: ReasoningTask, policy: Policy) -> Path:
    """Where the weights of a checkpoint are; it is trained now if they are not there. It has at least one stage."""

    def make(folder: Path) -> None:
        before = policy.model_copy(update={"stages": policy.stages[:-1]})
        stage = policy.stages[-1]
        seed = seed_of("reasoning_rl", task.spec.teacher_seed, len(before.stages), stage.objective) % 2**32
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
            torch.manual_seed(seed)
            model = load(task, before).to(task.device)
            history = (
                reinforce(task, model, stage) if stage.objective == "grpo" else supervise(task, model, stage, seed)
            )
        round_to_half(model)
        seconds = time.perf_counter() - started
        model.half().save_pretrained(folder)
        task.tokenizer.save_pretrained(folder)
        facts = {"seconds": round(seconds, 1), "stage": stage.model_dump(mode="json"), "history": history}
        (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")

    return task.cache.get("teacher", task.spec.policy_key(policy), make)


def load(task: ReasoningTask, policy: Policy) -> nn.Module:
    """A checkpoint with its weights on the CPU; without stages it has those of the global generators."""
    model: nn.Module = task._build(policy)
    return task._load_weights(model, folder_of(task, policy)) if policy.stages else model


def supervise(task: ReasoningTask, model: nn.Module, stage: ReasonStage, seed: int) -> list[dict[str, float]]:
    """Cross-entropy on worked solutions, in place; the loss at every fiftieth step."""
    history: list[dict[str, float]] = []

    def note(step: int, loss: float) -> None:
        history.append({"step": step, "loss": round(loss, 4)})
        log.info("%s step %d of %d: loss %.3f", stage.objective, step, stage.steps, loss)

    rows = task.kind.rows_of_stage(stage)
    train_stage(model, rows, stage, torch.Generator().manual_seed(seed), on_step=note)
    return history


@torch.enable_grad()  # a teacher may be asked for, and so trained, where gradients are off
def reinforce(task: ReasoningTask, model: nn.Module, stage: ReasonStage) -> list[dict[str, float]]:
    """Group-relative policy optimisation on the verifier's reward, in place; the mean reward over time.

    One update a batch of rollouts, token mean, no reference policy: strictly on-policy.
    """
    recipe = {
        **task.spec.recipe.model_dump(),
        "lr": stage.lr,
        "weight_decay": stage.weight_decay,
        "batch_size": stage.batch_size,
        "accumulate": 1,
    }
    spec = task.spec.model_copy(
        update={"limits": {"steps": stage.steps}, "recipe": type(task.spec.recipe).model_validate(recipe)}
    )
    with tempfile.TemporaryDirectory() as scratch:
        probe = type(task)(
            spec, seed=0, method="checkpoint", folder=Path(scratch), cache=task.cache, device=task.device
        )

        def loss(policy: nn.Module, rollouts: Rollouts) -> torch.Tensor:
            logp = policy_logp(policy, rollouts)
            values = clipped(logp, rollouts.old_logp, advantages(rollouts))
            return aggregate(values, rollouts.sequence)

        fit_on_policy(
            probe,
            model,
            loss,
            families=stage.families,
            group=stage.group,
            temperature=stage.temperature,
        )
        lines = [json.loads(line) for line in probe.curve_since(0)]
    return [{"step": row["step"], "reward": round(row["reward"], 4)} for row in lines if "reward" in row]

"""Teachers, and the causal network that is their reference: from the cache, or trained now."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.errors import Diverged
from kdbench.tracks.dllm.batches import Batch
from kdbench.tracks.dllm.blocks.objectives import causal_loss, mdm_loss
from kdbench.tracks.dllm.kinds.base import Split
from kdbench.tracks.dllm.networks.build import new_transformer
from kdbench.tracks.dllm.networks.transformer import Transformer, load_transformer, save_transformer
from kdbench.tracks.dllm.spec import Trained, Training

if TYPE_CHECKING:
    from kdbench.tracks.dllm.task import DllmTask


def train(net: Transformer, training: Training, split: Split, seed: int, device: torch.device) -> float:
    """Train a network on a split in place; the mean loss of the last tenth of the steps. Raises ``Diverged``."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=training.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = max(1, round(training.warmup * training.steps))

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, training.steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rows_of = Batch(split.prompts, split.answer, torch.arange(len(split)))
    last: list[float] = []
    net.train()
    for step in range(training.steps):
        rows = torch.randint(len(split), (training.batch_size,), generator=generator)
        batch = rows_of[rows].to(device)
        loss: Tensor = (
            causal_loss(net, batch)
            if net.shape.causal
            else mdm_loss(net, batch, generator, mask_id=net.mask, t_min=training.t_min)
        )
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss of the teacher is {loss.item()} at step {step + 1} of {training.steps}")
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step >= 0.9 * training.steps:
            last.append(loss.item())
    return sum(last) / max(1, len(last))


def stored(task: DllmTask, *, causal: bool = False) -> Transformer:
    """The mask predictor of a task, or the causal network of the same size and training, on the CPU."""
    spec = task.spec
    teacher = spec.teacher
    assert isinstance(teacher, Trained)

    def make(folder: Path) -> None:
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.teacher_seed)
            net = new_transformer(spec, causal=causal).to(task.device)
        loss = train(net, teacher.training, task.kind.split("train"), spec.teacher_seed, task.device)
        save_transformer(net, folder, torch.float16)  # half as large where it ships; what is read is the teacher
        facts = {"seconds": round(time.perf_counter() - started, 1), "steps": teacher.training.steps, "loss": loss}
        (folder / "training.json").write_text(json.dumps(facts) + "\n")

    key = spec.causal_identity() if causal else spec.teacher_identity()
    return load_transformer(task.cache.get("teacher", key, make))

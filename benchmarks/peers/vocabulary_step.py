"""One way to take a step of a loss over a vocabulary, in a process of its own that does what its parent says.

``python vocabulary_step.py '{"way": "kdbench", ...}'`` makes the inputs and reads lines: ``first FILE`` takes the first
step and writes its loss and gradients, ``step`` takes another one. Each is answered by a line of JSON.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

BETAS = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}
"""Losses that TRL and Liger-Kernel have, as they name them."""
SKEW = 0.1

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Hidden states (N, D) and head (V, D) of the student, hidden states (N, E) and head (V, E) of the teacher."""


def inputs(config: dict[str, Any]) -> Inputs:
    """Normal hidden states, and heads whose logits have a variance of 4; the same for every way."""
    draw, dtype = torch.Generator().manual_seed(0), getattr(torch, config["dtype"])
    exact = torch.float64 if config["way"] == "exact" else dtype
    parts = []
    for width in (config["width"], config["teacher_width"]):
        for rows, scale in ((config["positions"], 1.0), (config["vocabulary"], 2 / math.sqrt(width))):
            made = torch.empty(rows, width, dtype=dtype)
            for part in made.split(4096):  # small pieces leave no peak of their own
                part.copy_(scale * torch.randn(part.shape, generator=draw))
            parts.append(made.to(config["device"], exact))
    hidden, weight, teacher_hidden, teacher_weight = parts
    return hidden.requires_grad_(), weight.requires_grad_(), teacher_hidden, teacher_weight


def logits(made: Inputs) -> tuple[Tensor, Tensor]:
    """Both models' logits of all positions, in float32 or wider as mixed precision hands them out."""
    hidden, weight, teacher_hidden, teacher_weight = made
    with torch.no_grad():
        said = F.linear(teacher_hidden, teacher_weight)
    student = F.linear(hidden, weight)
    wide = torch.promote_types(student.dtype, torch.float32)
    return student.to(wide), said.to(wide)


def plain(loss: str) -> Callable[[Inputs], Tensor]:
    """The formula as one writes it down."""

    def step(made: Inputs) -> Tensor:
        student, said = logits(made)
        log_q, log_p = F.log_softmax(student, -1), F.log_softmax(said, -1)
        if loss == "fkl":
            values = log_p.exp() * (log_p - log_q)
        elif loss == "rkl":
            values = log_q.exp() * (log_q - log_p)
        elif loss == "srkl":
            mixed = torch.logaddexp(log_p + math.log(1 - SKEW), log_q + math.log(SKEW))
            values = log_q.exp() * (log_q - mixed)
        else:
            mixed = torch.logaddexp(log_p, log_q) - math.log(2)
            values = (log_p.exp() * (log_p - mixed) + log_q.exp() * (log_q - mixed)) / 2
        return values.sum(-1).mean()

    return step


def kdbench(loss: str) -> Callable[[Inputs], Tensor]:
    """Block by block, gradients on the way."""
    from kdbench.losses.divergences import divergence
    from kdbench.losses.vocabulary import Head, chunked_divergence

    formula = divergence(loss, **({"lam": SKEW} if loss == "srkl" else {}))

    def step(made: Inputs) -> Tensor:
        hidden, weight, teacher_hidden, teacher_weight = made
        weights = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
        return chunked_divergence(Head(hidden, weight), Head(teacher_hidden, teacher_weight), formula, weights)["kd"]

    return step


def trl(loss: str) -> Callable[[Inputs], Tensor]:
    """The loss of TRL's GKDTrainer, of the logits of all positions."""
    from trl.experimental.gkd import GKDTrainer

    return lambda made: GKDTrainer.generalized_jsd_loss(*logits(made), beta=BETAS[loss])


def trl_chunked(loss: str) -> Callable[[Inputs], Tensor]:
    """The loss of TRL's DistillationTrainer, of tiles of logits that are computed again for the gradient."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def step(made: Inputs) -> Tensor:
        hidden, weight, teacher_hidden, teacher_weight = made
        values, _ = ChunkedDivergenceFunction.apply(
            hidden, weight, None, teacher_hidden, teacher_weight, None, BETAS[loss]
        )
        return values.mean()

    return step


def liger(loss: str) -> Callable[[Inputs], Tensor]:
    """The fused loss of Liger-Kernel, compiled on CUDA as it is by default."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def step(made: Inputs) -> Tensor:
        cuda = made[0].is_cuda
        fused = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETAS[loss], compiled=cuda, chunk_size=1024 if cuda else 64
        )
        return fused(*made, true_labels=torch.zeros(len(made[0]), dtype=torch.int64, device=made[0].device))

    return step


WAYS = {"exact": plain, "plain": plain, "kdbench": kdbench, "TRL": trl, "TRL chunked": trl_chunked, "Liger": liger}


def memory(device: str, *, restart: bool = False) -> float:
    """Largest memory in use since the last restart, bytes: on CUDA of tensors, else of the whole process."""
    if device == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if not status.exists():
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if restart:
        Path("/proc/self/clear_refs").write_text("5")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024.0 * int(lines["VmHWM"].split()[0])


def main() -> None:
    """Do what the lines say until there are no more."""
    config = json.loads(sys.argv[1])
    device = config["device"]
    torch.set_num_threads(config["threads"])
    take = WAYS[config["way"]](config["loss"])
    made = inputs(config)
    small = {**config, "positions": 2, "vocabulary": 8}
    take(inputs(small)).backward()  # what libraries load at their first use is no memory of the step

    for line in sys.stdin:
        word, _, path = line.strip().partition(" ")
        made[0].grad = made[1].grad = None
        before = memory(device, restart=True)
        wall, cpu = time.perf_counter(), time.process_time()
        value = take(made)
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        said = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "bytes": memory(device) - before,
            "loss": value.item(),
        }
        del value
        if word == "first":
            save_file({"hidden": made[0].grad.float().cpu(), "weight": made[1].grad.float().cpu()}, path)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()

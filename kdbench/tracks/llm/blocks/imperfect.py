"""A smaller teacher that has learned from what the task's teacher writes: a proxy of a truth that is known."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from kdbench.task import count_parameters, seed_of
from kdbench.tracks.llm.blocks.completions import write
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.llm.networks import models, teachers
from kdbench.tracks.llm.spec import Net, Stage

ROLE = "imperfect teacher"


def imperfect_seed(task: Any) -> int:
    """Seed of an imperfect teacher and of its data: that of the task's teachers, whatever the job's."""
    return seed_of("llm", ROLE, task.spec.teacher_seed)


def disjoint_rows(task: Any, first: int, then: int) -> tuple[Tensor, Tensor]:
    """Rows of the training data for two stages that share none.

    ``first`` of them, at most half of all, equal for all seeds of a task; of the rest ``then``, in the order of the
    stream ``prompts``.
    """
    total = len(task.split("train"))
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(imperfect_seed(task)))
    one = shuffled[: max(1, min(first, total // 2))]
    rest = shuffled[len(one) :]
    return one, rest[torch.randperm(len(rest), generator=task.generator("prompts"))][:then]


def imperfect_teacher(
    task: Any,
    rows: Tensor,
    *,
    layers: int,
    width: int,
    lm_steps: int,
    sft_steps: int,
    lr: float,
    max_new: int,
    temperature: float,
) -> tuple[nn.Module, Sequences]:
    """A frozen decoder, and the responses of the task's teacher to the prompts ``rows`` that it was fine-tuned on.

    Four heads, ``width`` a multiple of 4; ``lm_steps`` on the task's text, then ``sft_steps`` on the responses (at most
    ``max_new`` tokens, sampled at ``temperature``), batches of 16, peak rate ``lr``. It is made once and shared by all
    seeds and methods; each job is charged for it all the same: ``aux_steps``, ``flops``, and what the responses cost.
    """
    stage = partial(Stage, lr=lr, batch_size=16)
    stages = [stage(objective="lm", steps=lm_steps)] if lm_steps else []
    stages.append(stage(objective="sft", steps=sft_steps))
    net = Net(layers=layers, width=width, heads=4, stages=tuple(stages))
    build = partial(models.build, net, task.tokenizer, vocabulary=task.teacher_vocabulary)
    options: dict[str, Any] = {"max_new": max_new, "temperature": temperature}
    key = {
        "track": "llm",
        "role": ROLE,
        "oracle": task.spec.teacher_identity(),
        "data": task.split("train").digest,
        "net": net.model_dump(mode="json"),
        "rows": len(rows),
        "sampling": options,
        "seed": task.spec.teacher_seed,
    }

    def make(folder: Path) -> None:
        before = dict(task.budget.spent)
        generator = torch.Generator().manual_seed(imperfect_seed(task))
        written = write(task, task.teacher(), rows, generator=generator, **options)
        written.save(folder, "responses")
        data = {"lm": task.split("train").sequences.plain(), "sft": written}
        seed = imperfect_seed(task) % 2**32
        teachers.make(folder, net, build, data.__getitem__, task.tokenizer, seed, task.device)
        costs = {meter: value - before.get(meter, 0.0) for meter, value in task.budget.spent.items()}
        tokens = sum(
            each.steps * each.batch_size * float(data[each.objective].lengths.float().mean()) for each in stages
        )
        costs["flops"] = costs.get("flops", 0.0) + 6.0 * count_parameters(build()) * tokens
        costs["aux_steps"] = sum(each.steps for each in stages)
        (folder / "costs.json").write_text(json.dumps({meter: value for meter, value in costs.items() if value}))
        task.budget.restore(before)

    with task.seeded(ROLE):
        folder = task.cache.get("teacher", key, make)
        teacher = task.share(AutoModelForCausalLM.from_pretrained(folder).float())
    for meter, amount in json.loads((folder / "costs.json").read_text()).items():
        task.budget.spend(meter, amount)
    return teacher, Sequences.read(folder, "responses")

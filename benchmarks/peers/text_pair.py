"""Distillation of a small causal language model by a larger one: by hand, with trainers of others, with kdbench.

(1 - w) CE + w T^2 KL over the next tokens, by AdamW with clipping along a cosine. A cached teacher is its 64 most
probable tokens and all others together. Run by ``benchmarks/training_step.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Curve, Turns, orders

TASK = "llm/text"
IGNORE = -100
RECIPE = {"optimizer": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup": 0.0, "final_lr": 0.1, "clip": 1.0}

Batch = dict[str, Tensor]
Formula = Callable[[nn.Module, Batch], Tensor]


def overrides(config: dict[str, Any]) -> dict[str, Any]:
    """How the task is changed for the measurement: few data and a quickly trained teacher, as these change no time."""
    stage = {"objective": "lm", "steps": 20, "batch_size": 16, "lr": 2e-3}
    return {
        "data": {"bytes_per_domain": 60_000},
        "teacher": {"stages": [stage]},
        "student": {"stages": []},
        "gate": None,
        "recipe": RECIPE,
        **({"outputs": {"k": 64}} if config["teacher"] == "cached" else {}),
    }


def formula(task: Any, config: dict[str, Any]) -> Formula:
    """The loss as one writes it for one experiment, with what it needs ready."""
    weight, temperature = config["weight"], config["temperature"]

    def mixed(student: Tensor, said: Tensor, nll: Tensor) -> Tensor:
        soft = F.kl_div(
            F.log_softmax(student / temperature, -1),
            F.log_softmax(said / temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - weight) * nll + weight * temperature**2 * soft

    def logits_of(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        scored = batch["labels"][:, 1:] != IGNORE
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits[:, :-1][scored], batch["labels"][:, 1:][scored], scored

    if config["teacher"] == "live":
        teacher = task.load_teacher().eval().requires_grad_(False)

        def live(model: nn.Module, batch: Batch) -> Tensor:
            logits, targets, scored = logits_of(model, batch)
            with torch.no_grad():
                said = teacher(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            nll = F.cross_entropy(logits, targets) if weight < 1 else logits.new_zeros(())
            return mixed(logits, said[:, :-1][scored], nll)

        return live

    kept, tokens = task._outputs.get("train")  # what kdbench keeps: the same values for every way

    def cached(model: nn.Module, batch: Batch) -> Tensor:
        logits, targets, scored = logits_of(model, batch)
        rows, width = batch["rows"], scored.shape[1]
        said = kept[rows, :width][scored].float().log_softmax(-1)
        ids = tokens[rows, :width][scored].long()
        logprobs = logits.log_softmax(-1)
        best = logprobs.gather(-1, ids)
        rest = torch.log1p(-best.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        return mixed(torch.cat([best, rest], -1), said, F.nll_loss(logprobs, targets))

    return cached


def collate(sequences: Any, rows: Tensor) -> Batch:
    """Rows as a batch that is cut to its longest row."""
    lengths = sequences.lengths[rows]
    ids = sequences.ids[rows, : int(lengths.max())].long()
    present = torch.arange(ids.shape[1]) < lengths[:, None]
    labels = ids.masked_fill(~present, IGNORE)
    return {"input_ids": ids, "attention_mask": present.long(), "labels": labels, "rows": rows}


def by_hand(task: Any, turns: Turns, config: dict[str, Any], batches: list[Tensor]) -> None:
    """A training loop as one writes it for one experiment."""
    student, sequences, loss_of = turns.student, task.split("train").sequences, formula(task, config)
    turns.wait()
    optimizer, schedule = optimizing(student, config["total"])
    student.train()
    curve = Curve(config["total"])
    for step, rows in enumerate(batches, start=1):
        loss = loss_of(student, collate(sequences, rows))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), RECIPE["clip"])
        optimizer.step()
        schedule.step()
        curve.add(step, loss)
        turns.step()


def optimizing(student: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and a cosine to a tenth."""
    optimizer = torch.optim.AdamW(student.parameters(), RECIPE["lr"], weight_decay=0.0)
    floor = RECIPE["lr"] * RECIPE["final_lr"]
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 1, eta_min=floor)


# --- trainers of others -----------------------------------------------------------------------------------------------


def trainer(task: Any, turns: Turns, config: dict[str, Any], batches: list[Tensor]) -> None:
    """``Trainer`` of transformers with the loss written by hand, or ``GKDTrainer`` of TRL with its own."""
    import transformers
    from torch.utils.data import DataLoader

    class Ordered:
        """Mixed into a trainer: batches in the order that all ways have."""

        def get_train_dataloader(self: Any) -> Any:
            loader = DataLoader(self.train_dataset, batch_sampler=_Order(batches), collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    class Steps(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step()

    folder = tempfile.mkdtemp(prefix="kdbench-trainer-", dir=config["folder"])
    common = {
        "output_dir": folder,
        "max_steps": config["total"],
        "max_grad_norm": RECIPE["clip"],
        "logging_steps": max(1, config["total"] // 50),
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }
    rows = _dataset(task)
    made: dict[str, Any] = {"train_dataset": rows, "data_collator": _collate, "callbacks": [Steps()]}
    if config["way"] == "TRL":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        kind = type("OrderedGKD", (Ordered, GKDTrainer), {})
        teacher = task.load_teacher().eval()
        made |= {"teacher_model": teacher, "processing_class": task.tokenizer}
        args = GKDConfig(**common, lmbda=0.0, beta=0.0, temperature=1.0)
    else:
        loss_of = formula(task, config)

        def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return loss_of(model, inputs)

        kind = type("OrderedTrainer", (Ordered, transformers.Trainer), {"compute_loss": compute_loss})
        args = transformers.TrainingArguments(**common)
    turns.wait()
    kind(turns.student, args=args, optimizers=optimizing(turns.student, config["total"]), **made).train()


class _Order:
    """A sampler of batches."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _dataset(task: Any) -> Any:
    """The training data as trainers take them."""
    import datasets

    sequences = task.split("train").sequences
    rows = [row[:length].tolist() for row, length in zip(sequences.ids, sequences.lengths, strict=True)]
    return datasets.Dataset.from_dict({"input_ids": rows, "rows": list(range(len(rows)))})


def _collate(rows: list[dict[str, Any]]) -> Batch:
    """Rows of the data set as a batch that is as wide as its longest row."""
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    present = torch.arange(ids.shape[1]) < lengths[:, None]
    return {
        "input_ids": ids,
        "attention_mask": present.long(),
        "labels": ids.masked_fill(~present, IGNORE),
        "rows": torch.tensor([row["rows"] for row in rows]),
    }


# --- kdbench ----------------------------------------------------------------------------------------------------------


def fit(task: Any, turns: Turns, config: dict[str, Any]) -> None:
    """``task.fit`` with the loss that most methods on text share."""
    from kdbench.losses.divergences import divergence
    from kdbench.training.distill import train_with_divergence

    if config["teacher"] == "cached":
        task._outputs.get("train")  # made once for all jobs, before they start
    else:
        task.teacher()
    turns.wait()
    train_with_divergence(
        task,
        divergence("fkl"),
        kd_ratio=config["weight"],
        temperature=config["temperature"],
        student=turns.student,
        on_step=turns.step,
    )


def train(way: str, task: Any, turns: Turns, config: dict[str, Any]) -> None:
    """One of the ways; the first wait of ``turns`` comes when data and models are ready."""
    if way == "kdbench":
        fit(task, turns, config)
        return
    batches = orders(
        len(task.split("train").sequences), task.spec.recipe.batch_size, config["total"], task.stream("data")
    )
    (by_hand if way == "by hand" else trainer)(task, turns, config, batches)

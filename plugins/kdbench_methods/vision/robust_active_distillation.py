"""Robust Active Distillation (Baykal et al., ICLR 2023).

A costly teacher is right on an unknown m of the n samples of a pool; the student chooses which soft labels to buy. With
the informativeness g_i = 1 - margin of the student's two largest probabilities, the sampling distribution is that of
the game against the worst placement of the teacher's errors (section 3),

    max_p min_{|S| = m} sum_{i in S} p_i g_i

whose solution spreads over the k most informative samples with weights *inverse* to g: p_i = (1 / g_i) / H_k, where
H_k = sum_{i <= k} 1 / g_i and k maximises (k - (n - m)) / H_k. m is estimated from the teacher's accuracy on the
labelled set, so that nothing is left to tune. Each round draws from p without replacement, buys the soft labels, and
trains a student from scratch on labels and soft labels. The same loop runs the strategies it is compared with.

Evaluation adds the mean test accuracy over the query curve, the precision of the bought labels, and the value of the
game.
"""

import json
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.vision.batches import roll
from kdbench.training.active import active_distillation, area
from kdbench.training.selection import draw, entropy, k_center, margin_informativeness, robust_distribution, top

PAPER = Paper(
    slug="robust_active_distillation",
    title="Robust Active Distillation",
    year=2023,
    authors=["Cenk Baykal", "Khoa Trinh", "Fotis Iliopoulos", "Gaurav Menghani", "Erik Vee"],
    venue="ICLR 2023",
    arxiv="2210.01213",
    track="vision",
    source="paper",
    tasks=["active"],
    requires=["logits"],
    tags=["active", "data-selection", "semi-supervised"],
    claims=[
        Compare(
            metric="query_precision",
            subject="robust_active_distillation",
            reference={"method": "robust_active_distillation", "params": {"strategy": "margin"}},
            tasks=["active", "digits-active"],
            note="bought labels are more often correct than those of plain margin sampling",
        ),
        Compare(
            metric="top1",
            subject="robust_active_distillation",
            reference={"method": "robust_active_distillation", "params": {"strategy": "margin"}},
            tasks=["active", "digits-active"],
            kind="noninferior",
            margin=0.01,
        ),
    ],
    departures=[
        "where the distribution's support is smaller than a batch, the rest of the batch is drawn uniformly",
        "the batch size, the number of rounds and the student's initialisation are the track's",
    ],
)


class RobustActiveDistillationParams(Params):
    """Query budget and strategy."""

    strategy: Literal["robust", "uniform", "margin", "entropy", "k-center", "confident-margin", "full"] = Field(
        "robust",
        description="how samples are chosen; the paper's is robust. full and confident-margin ask about the whole pool",
    )
    rounds: int = Field(5, ge=1, le=100, description="times that soft labels are bought")
    batch: int | None = Field(
        None, ge=1, description="soft labels bought per round; null: the task's query limit shared by the rounds"
    )
    temperature: float = Field(1.0, gt=0, le=100, description="of the soft-label loss")


def robust(view, count):
    """Drawn without replacement from the solution of the game."""
    n = len(view.probs)
    wrong = min(n - 1, round(n * (1 - view.teacher_accuracy)))
    probabilities, _ = robust_distribution(margin_informativeness(view.probs), wrong)
    return draw(probabilities, count, view.generator)


def confident_margin(view, count):
    """Largest student uncertainty among the half that the teacher is most confident of; asks about the whole pool."""
    confidence = F.softmax(view.ask(view.positions).cpu().float(), -1).amax(1)
    half = top(confidence, max(count, len(confidence) // 2))
    return half[top(margin_informativeness(view.probs)[half], count)]


STRATEGIES = {
    "robust": robust,
    "uniform": lambda view, count: torch.randperm(len(view.probs), generator=view.generator)[:count],
    "margin": lambda view, count: top(margin_informativeness(view.probs), count),
    "entropy": lambda view, count: top(entropy(view.probs), count),
    "k-center": lambda view, count: k_center(view.features, view.taken, count),
    "confident-margin": confident_margin,
    "full": lambda view, count: torch.arange(len(view.probs)),
}


def batch_size(task, params):
    """Soft labels per round. Raises ``UsageError`` where neither the parameters nor the task limit them."""
    if params.batch is not None:
        return params.batch
    limit = task.spec.limits.get("teacher_queries")
    if limit is None:
        raise UsageError(f"{task.spec.name} does not limit teacher_queries; set the parameter batch")
    return max(1, int(limit) // params.rounds)


@hookimpl
def train(task, params):
    labelled, pool = task.split("labeled"), task.split("pool")
    everything = params.strategy == "full"
    batch = len(pool) if everything else batch_size(task, params)
    right = task.teacher_logits(labelled.batch()).argmax(1) == labelled.y
    accuracy, shift = float(right.float().mean()), task.generator("augment")

    def keep(number, student):
        weights = {name: tensor.contiguous() for name, tensor in student.state_dict().items()}
        save_file(weights, task.artifact(f"round{number}.safetensors"))

    result = active_distillation(
        task,
        (labelled.x.cpu(), labelled.y.cpu()),
        pool.x.cpu(),
        task.query,
        STRATEGIES[params.strategy],
        rounds=1 if everything else params.rounds,
        batch=batch,
        teacher_accuracy=accuracy,
        temperature=params.temperature,
        augment=(lambda x: roll(x, shift)) if task.spec.augment == "roll" else (lambda x: x),
        classes=task.num_classes,
        on_round=keep,
    )
    rounds = [vars(each) for each in result.rounds]
    task.artifact("rounds.json").write_text(json.dumps({"teacher_accuracy": accuracy, "rounds": rounds}))
    return result.student


@hookimpl
def evaluate(task, model):
    """Area under the accuracy curve, precision of the bought labels, and the game as the student sees the pool."""
    made = json.loads(task.artifact("rounds.json").read_text())
    queries, curve = [each["queries"] for each in made["rounds"]], []
    for number in range(len(queries)):
        student = task.student()
        student.load_state_dict(load_file(task.artifact(f"round{number}.safetensors")))
        curve.append(task.score_test(student).metrics["top1"])
    pool, truth = task.split("pool"), task.truth("pool")
    right = task.predict(task.teacher(), pool.x).argmax(1) == truth
    bought = torch.tensor([position for each in made["rounds"] for position in each["positions"]], device=truth.device)
    wrong = min(len(pool) - 1, round(len(pool) * (1 - made["teacher_accuracy"])))
    informativeness = margin_informativeness(F.softmax(task.predict(model, pool.x), 1).cpu())
    probabilities, value = robust_distribution(informativeness, wrong)
    return task.score(model) | {
        "accuracy_area": area(queries, curve),
        "top1_labels_only": curve[0],
        "queries": float(queries[-1]),
        "query_precision": float(right[bought].float().mean()),
        "pool_teacher_top1": float(right.float().mean()),
        "estimated_teacher_top1": made["teacher_accuracy"],
        "game_value": value,
        "game_support": float((probabilities > 0).double().mean()),
    }

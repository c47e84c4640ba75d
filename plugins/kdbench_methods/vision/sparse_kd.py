"""Sparse Knowledge Distillation: A Mathematical Framework for Probability-Domain Temperature Scaling and Multi-Stage
Compression (Flouro and Chadwick, 2026). Our reading of the abstract throughout.

A dense student is pruned in n stages and distilled along a homotopy. Stage i keeps the share (1 - s)^(i/n) of the
weights, by magnitude, and learns for its part of the steps from the *function* of stage i - 1, whose probabilities are
softened by an operator S_T (``power``, ``uniform`` mixing or ``log1p``) at a temperature that falls on the way,

    weight T_i^2 KL(S_Ti(A(p_{i-1})) || S_Ti(softmax(z))) + (1 - weight) CE,  T_i = T_end + (T - T_end) (n - i) / n

Both sides are softened, so that the stage before is reproduced where it can be. With ``softened: teacher`` the student
is not: its softened probabilities are the next stage's teacher, temperatures multiply along the path, and targets
become uniform.

A is what can be seen of the teacher: everything, its k largest probabilities (the rest of the mass uniform), its
decision alone, or noised probabilities. The dense student learns from the task's teacher, as ``aux_steps``. ``stages:
1`` is pruning at one shot, ``weight: 0`` pruning with labels alone.

Evaluation adds exact checks in float64: the axioms of each operator and two planted violators, the equivalence of
temperatures for a realizable linear student (W_T2 = W_T1 T1 / T2 up to a shift of all classes), the rate in n of a
staged path of logits (1 / n), and the Brier risk of dense and sparse networks that were trained on resampled data,
split into noise, squared bias and variance.
"""

import json
from copy import deepcopy
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import log_softmax
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.training import simplex
from kdbench.training.pruning import Masks, brier_parts, stage_sparsities, staged_path_rate
from kdbench.training.quantization import layer_weights

PAPER = Paper(
    slug="sparse_kd",
    title=(
        "Sparse Knowledge Distillation: A Mathematical Framework for Probability-Domain Temperature Scaling and "
        "Multi-Stage Compression"
    ),
    year=2026,
    authors=["Aaron R. Flouro", "Shawn P. Chadwick"],
    arxiv="2601.03195",
    track="vision",
    source="abstract",
    tasks=["classify", "hetero", "longtail", "noisy", "multidomain"],
    requires=["logits"],
    tags=["pruning", "temperature", "theory"],
    claims=[
        Compare(
            metric="top1",
            subject="sparse_kd",
            reference={"method": "sparse_kd", "params": {"stages": 1}},
            tasks=["shapetex"],
            note="at 95 % sparsity, pruning in stages succeeds where one shot fails",
        ),
        Compare(
            metric="equivalence_error",
            subject="sparse_kd",
            reference=0.0,
            tasks=["shapetex"],
            kind="noninferior",
            margin=1e-4,
            direction="min",
            note="temperatures of the power operator give one predictor",
        ),
        Compare(
            metric="brier_error",
            subject="sparse_kd",
            reference=0.0,
            tasks=["shapetex"],
            kind="noninferior",
            margin=1e-10,
            direction="min",
            note="noise, squared bias and variance sum to the risk",
        ),
    ],
    departures=[
        "operators, schedule of sparsity and temperature, loss and experiments are our reading of the abstract",
        "networks for bias and variance have few steps, so that a job stays short: their risks are their own",
    ],
)


class SparseKdParams(Params):
    """The path, the operator, what is seen of the teacher, and the resampled networks."""

    sparsity: float = Field(0.95, ge=0, lt=1, description="share of the layers' weights that are 0 in the end")
    stages: int = Field(8, ge=1, le=100, description="n; 1 prunes at one shot")
    operator: Literal["power", "uniform", "log1p"] = Field("power", description="softens the teacher's probabilities")
    temperature: float = Field(4.0, ge=1, le=100, description="T at the start of the path")
    final_temperature: float = Field(1.0, ge=1, le=100, description="T of the last stage")
    match_entropy: bool = Field(
        False, description="temperatures at which the operator gives the mean entropy that power has at T"
    )
    softened: Literal["both", "teacher"] = Field("both", description="whose probabilities a stage compares softened")
    weight: float = Field(0.9, ge=0, le=1, description="of the divergence; the cross-entropy has the rest")
    teacher: Literal["previous", "dense", "task"] = Field(
        "previous", description="who teaches a stage: the one before it, the dense student, or the task's teacher"
    )
    access: Literal["full", "top-k", "decision", "noisy"] = Field("full", description="what is seen of the teacher")
    k: int = Field(3, ge=1, le=1000, description="probabilities that top-k shows")
    noise: float = Field(0.05, ge=0, le=1, description="standard deviation of noisy probabilities")
    lr: float = Field(0.05, gt=0, le=1, description="peak learning rate of each stage")
    first_and_last: bool = Field(True, description="prune the first and the last layer, too")
    dense_steps: float = Field(
        0.6, ge=0, le=100, description="of the dense student, beyond the task's, as a multiple of the task's limit"
    )
    resamples: int = Field(5, ge=0, le=100, description="networks for bias and variance; 0 leaves them out")
    resample_steps: float = Field(0.1, gt=0, le=100, description="of each of them, dense and then sparse, likewise")


# --- the path ---------------------------------------------------------------------------------------------------------


def temperatures(params, stages):
    """T_1 to T_n of the stages, down to the final one."""
    end = params.final_temperature
    return [end + (params.temperature - end) * (stages - i) / stages for i in range(1, stages + 1)]


def shares(steps, stages):
    """Steps of each stage: equal parts, the rest at the end. At most as many stages as steps get any."""
    return [steps * (i + 1) // stages - steps * i // stages for i in range(stages)]


def seen(p, params, generator):
    """What is seen of probabilities (B, C)."""
    if params.access == "top-k":
        return simplex.top_k(p, params.k)
    if params.access == "decision":
        return F.one_hot(p.argmax(-1), p.shape[-1]).to(p)
    if params.access == "noisy":
        return simplex.noised(p, params.noise, generator)
    return p


def soft_loss(logits, target, labels, weight, operator=simplex.power, temperature=1.0):
    """Terms of the loss for target probabilities (B, C); the student's are softened at ``temperature``, too."""
    q = log_softmax(logits)
    if temperature != 1:
        q = operator(q.exp().clamp_min(torch.finfo(q.dtype).tiny), temperature).log()
    divergence = temperature**2 * F.kl_div(q, target, reduction="batchmean")
    return {"ce": (1 - weight) * cross_entropy(logits, labels), "kd": weight * divergence}


def run_stage(task, params, model, masks, teacher, temperature, *, steps, loader=None, spend="steps", tag=""):
    """Train the pruned model on a teacher's softened probabilities; masks hold after every step."""
    operator, generator = simplex.SOFTENING[params.operator], task.generator("noise")

    def loss(model, batch):
        with torch.no_grad():
            target = operator(seen(teacher(batch).float().softmax(-1), params, generator), temperature)
        own = temperature if params.softened == "both" else 1.0
        return soft_loss(model(batch.x), target, batch.y, params.weight, operator, own)

    task.fit(
        model,
        loss,
        loader=loader,
        steps=steps,
        spend=spend,
        on_step=lambda step: masks.apply_to(model),
        tag=tag,
        lr=params.lr,
    )


def frozen(model):
    """A teacher of batches, from a copy of a network as it is now."""
    copy = deepcopy(model).requires_grad_(False).eval()
    return lambda batch: copy(batch.x)


@torch.no_grad()
def of_operator(task, params, teacher, temperature):
    """The temperature at which the operator softens the training data as much as power does, if that is asked for."""
    if not params.match_entropy or params.operator == "power":
        return temperature
    p = teacher(task.split("train").batch()).double().softmax(-1)
    wanted = float(simplex.entropy(simplex.power(p, temperature)).mean())
    return simplex.matched_temperature(simplex.SOFTENING[params.operator], p, wanted)


def train_dense(task, params, model, *, steps, loader=None, tag="dense"):
    """Stage 0: the dense student, by ordinary distillation from the task's teacher."""

    def loss(model, batch):
        logits = model(batch.x)
        return {
            "ce": (1 - params.weight) * cross_entropy(logits, batch.y),
            "kd": params.weight * kd_kl(logits, task.teacher_logits(batch), 4.0),
        }

    if steps:
        task.fit(model, loss, loader=loader, steps=steps, spend="aux_steps", tag=tag)


def resampled(task, params, names):
    """Weights of R dense networks and of their sparse students, each pair on its own bootstrap sample."""
    kept, size, steps = {}, len(task.split("train")), max(1, round(params.resample_steps * task.budget.steps()))
    for r in range(params.resamples):
        rows = torch.from_numpy(task.rng(f"bootstrap{r}").integers(size, size=size))
        with task.seeded(f"resample{r}"):
            model = task.build_student().to(task.device)

        def loader(part, rows=rows, r=r):
            return task.train_loader(indices=rows, purpose=f"resample{r}-{part}")

        train_dense(task, params, model, steps=steps, loader=loader("dense"), tag=f"dense{r}")
        kept |= {f"dense{r}/{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
        masks, teacher = Masks(model, names), frozen(model)
        masks.prune(model, params.sparsity)
        run_stage(
            task, params, model, masks, teacher, params.final_temperature, steps=steps,
            loader=loader("sparse"), spend="aux_steps", tag=f"sparse{r}",
        )  # fmt: skip
        kept |= {f"sparse{r}/{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return kept


@hookimpl
def train(task, params):
    student = task.student()
    names = layer_weights(student, ends=params.first_and_last)
    kept = resampled(task, params, names)
    train_dense(task, params, student, steps=round(params.dense_steps * task.budget.steps()))
    kept |= {f"start/{name}": tensor.detach().clone() for name, tensor in student.state_dict().items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, task.artifact("networks.safetensors"))
    masks, steps = Masks(student, names), task.budget.steps()
    stages = min(params.stages, steps)
    teacher = task.teacher_logits if params.teacher == "task" else frozen(student)
    path = zip(stage_sparsities(params.sparsity, stages), temperatures(params, stages), shares(steps, stages))
    for i, (sparsity, temperature, share) in enumerate(path, 1):
        if params.teacher == "previous" and i > 1:
            teacher = frozen(student)
        masks.prune(student, sparsity)
        soft = of_operator(task, params, teacher, temperature)
        run_stage(task, params, student, masks, teacher, soft, steps=share, tag=f"stage{i}")
        task.log(i, sparsity=sparsity, temperature=soft, val_top1=task.validate(student)["top1"])
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


def bias_variance(task, params, model, networks):
    """Brier risk of the resampled dense and sparse networks in parts, and whether the sparse ones win."""
    test, parts = task.split("test"), {}
    truth = F.one_hot(test.y, task.num_classes).double()
    network = deepcopy(model)
    for kind in ("dense", "sparse"):
        probs = []
        for r in range(params.resamples):
            state = {k.partition("/")[2]: v for k, v in networks.items() if k.startswith(f"{kind}{r}/")}
            network.load_state_dict(state)
            probs.append(task.predict(network, test.x).softmax(-1))
        parts[kind] = brier_parts(torch.stack(probs), truth)
    dense, sparse = parts["dense"], parts["sparse"]
    task.artifact("bias_variance.json").write_text(json.dumps({name: vars(each) for name, each in parts.items()}))
    return {
        "brier_error": max(dense.error, sparse.error),
        "variance_drop": dense.variance - sparse.variance,
        "bias2_rise": sparse.bias2 - dense.bias2,
        "resampled_risk_drop": dense.risk - sparse.risk,
    }


@hookimpl
def evaluate(task, model, params):
    """Sparsity as counted, the dense student, and the exact checks."""
    networks = load_file(task.artifact("networks.safetensors"))
    dense = deepcopy(model)
    dense.load_state_dict({k.partition("/")[2]: v for k, v in networks.items() if k.startswith("start/")})
    scores, dense_top1 = task.score(model), task.score_test(dense).metrics["top1"]
    axioms = simplex.axiom_matrix(task.generator("axioms"))
    task.artifact("axioms.json").write_text(json.dumps(axioms, indent=1) + "\n")
    error, alike = simplex.temperature_equivalence(task.rng("equivalence"))
    names = layer_weights(model, ends=params.first_and_last)
    own = {
        "sparsity": Masks(model, names).sparsity(model),
        "dense_top1": dense_top1,
        "lost_top1": dense_top1 - scores["top1"],
        "axioms_held": float(np.mean([ok for name in simplex.SOFTENING for ok in axioms[name].values()])),
        "violators_found": float(np.mean([not all(axioms[name].values()) for name in simplex.VIOLATORS])),
        "equivalence_error": error,
        "operators_alike": alike,
        "path_rate": staged_path_rate(task.rng("path")),
    }
    return scores | own | (bias_variance(task, params, model, networks) if params.resamples else {})

"""BD-KD: Balancing the Divergences for Online Knowledge Distillation (Amara et al., 2022).

A large network t and a small one s start from scratch and learn from each other on the same batches. The small one
minimises forward *and* reverse divergence to the large one, weighted anew for every sample by which of the two is more
certain: with p = softmax(z / T) and H the entropy of p,

    L_s = CE(z_s, y) + T^2 mean[ w_F KL(p_t || p_s) + w_R KL(p_s || p_t) ]      p_t constant
    L_t = CE(z_t, y) + beta T^2 mean KL(p_s || p_t)                             p_s constant
    w_F = delta, w_R = 1  where H(p_t) > H(p_s), the student is over-confident;  w_F = 1, w_R = delta  elsewhere

The forward divergence spreads the student over what the teacher holds possible, the reverse one concentrates it. With
``balance="soft"`` the switch is sigmoid((H(p_t) - H(p_s)) / kappa), which is the rule above for kappa near 0. With
``students`` > 1 the pairwise terms of each network are averaged over the others; a student's other students teach it
like the large network does. No gradient goes from one network's loss to another and every parameter has optimizer
statistics of its own, so that the one optimizer of the training is one for each network.

At delta = 1 the student's term is the symmetric divergence of Jeffreys; ``balance="forward"`` at T = 1 is deep mutual
learning with a larger peer. Only the first student is returned and evaluated, with its calibration on the test data:
ECE, adaptive ECE, reliability diagram, and the temperature that a recalibration on the validation data would choose.
"""

import json
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import entropy, fkl, log_softmax, rkl
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision import metrics
from kdbench.training.schedules import Watch
from kdbench.training.state import Values

PAPER = Paper(
    slug="bd_kd",
    title="BD-KD: Balancing the Divergences for Online Knowledge Distillation",
    year=2022,
    authors=["Ibtihel Amara", "Nazanin Sepahvand", "Brett H. Meyer", "Warren J. Gross", "James J. Clark"],
    arxiv="2212.12965",
    track="vision",
    source="abstract",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain"],
    tags=["online", "logits", "divergence", "calibration"],
    claims=[
        Compare(
            metric="ece",
            subject="bd_kd",
            reference="dml",
            tasks=["shapetex", "digits-gap"],
            note="better calibrated than mutual learning without any scaling afterwards",
        ),
        Compare(
            metric="top1",
            subject="bd_kd",
            reference="dml",
            tasks=["shapetex", "digits-gap"],
            kind="noninferior",
            margin=0.01,
            note="and at no loss of accuracy",
        ),
        Compare(
            metric="ece",
            subject="bd_kd",
            reference={"method": "bd_kd", "params": {"balance": "forward"}},
            tasks=["shapetex", "digits-gap"],
            note="balancing calibrates better than the forward divergence alone",
        ),
        Compare(
            metric="ece",
            subject="bd_kd",
            reference="kd_recalibrated",
            tasks=["shapetex", "digits-gap"],
            kind="noninferior",
            margin=0.01,
            note="what ordinary distillation reaches only by scaling its logits afterwards",
        ),
    ],
    departures=[
        "delta = 2, beta = 1 and the soft switch are our reading: the public summary does not give the weights",
        "the large network is trained by the task's recipe, made for the student, and for as many steps",
    ],
)


class BdKdParams(Params):
    """Balance of the divergences, temperature, and the networks that learn together."""

    temperature: float = Field(2.0, gt=0, le=100, description="softens all networks' distributions; 1 to 4 usually")
    balance: Literal["switch", "soft", "sum", "forward", "reverse"] = Field(
        "switch", description="switch: the paper's, soft: by a sigmoid, sum: w_F = w_R = 1, or one divergence alone"
    )
    delta: float = Field(2.0, ge=0, le=100, description="weight of the divergence that a sample needs; the other has 1")
    kappa: float = Field(0.1, gt=0, description="soft: difference of entropies, in nats, at which the sigmoid is 0.73")
    beta: float = Field(1.0, ge=0, description="weight of the divergence in the large network's loss")
    students: int = Field(1, ge=1, le=8, description="small networks that learn together with the large one")


def overconfident(student, teacher, temperature):
    """H(p_t) - H(p_s) of softened distributions in nats; (B, C), (B, C) to (B,), no gradient."""
    with torch.no_grad():
        return entropy(log_softmax(teacher, temperature)) - entropy(log_softmax(student, temperature))


def weights(gap, params):
    """(w_F, w_R) of each sample, both (B,), from the differences of entropies (B,)."""
    one = torch.ones_like(gap)
    if params.balance in ("sum", "forward", "reverse"):
        return (0 * one if params.balance == "reverse" else one), (0 * one if params.balance == "forward" else one)
    share = torch.sigmoid(gap / params.kappa) if params.balance == "soft" else (gap > 0).to(gap.dtype)
    return 1 + (params.delta - 1) * share, 1 + (params.delta - 1) * (1 - share)


def balanced_divergence(student, teacher, params):
    """T^2 mean[w_F KL(p_t || p_s) + w_R KL(p_s || p_t)] from logits (B, C); the teacher is a constant."""
    t = params.temperature
    w_forward, w_reverse = weights(overconfident(student, teacher, t), params)
    return (w_forward * fkl(student, teacher, temperature=t) + w_reverse * rkl(student, teacher, temperature=t)).mean()


def pairwise(logits, params):
    """Mean divergence of each network to all others; K logits (B, C), the large network's first, to K scalars.

    Networks other than the first learn by the balanced divergence, the first by that to its students, KL(p_s || p_t).
    """
    large, *small = logits
    first = torch.stack([fkl(large, other, temperature=params.temperature).mean() for other in small]).mean()
    losses = [params.beta * first]
    for mine in small:
        others = [other for other in logits if other is not mine]
        losses.append(torch.stack([balanced_divergence(mine, other, params) for other in others]).mean())
    return losses


@hookimpl
def train(task, params):
    student, large = task.student(), task.teacher_init()
    with task.seeded("peers"):
        peers = [task.build_student().to(task.device) for _ in range(params.students - 1)]
    others, steps = nn.ModuleList([large, *peers]), task.budget.steps()
    task.budget.spend("aux_steps", steps * len(others))
    watch, seen = Watch(task, steps), Values(overconfident=torch.zeros((), device=task.device), samples=0)

    def loss(model, batch):
        logits = [large(batch.x), model(batch.x), *(peer(batch.x) for peer in peers)]
        mutual_large, mutual, *mutual_peers = pairwise(logits, params)
        share = (overconfident(logits[1], logits[0], params.temperature) > 0).float()
        seen.overconfident, seen.samples = seen.overconfident + share.sum(), seen.samples + len(share)
        watch.add(overconfident=share.mean())
        terms = {
            "ce": cross_entropy(logits[1], batch.y),
            "mutual": mutual,
            "large_ce": cross_entropy(logits[0], batch.y),
            "large_mutual": mutual_large,
        }
        if peers:
            terms["peers"] = sum(cross_entropy(z, batch.y) for z in logits[2:]) + sum(mutual_peers)
        return terms

    task.fit(student, loss, modules=[others], on_step=watch, state=[watch, seen])
    task.artifact("training.json").write_text(json.dumps({"overconfident": float(seen.overconfident) / seen.samples}))
    save_file({name: value.contiguous() for name, value in large.state_dict().items()}, task.artifact("large"))
    return student


@hookimpl
def evaluate(task, model, params):
    """Calibration of the student before and after a recalibration, and what the large network has reached."""
    large = task.teacher_init()
    large.load_state_dict(load_file(task.artifact("large")))
    task.artifact("large").unlink()  # much larger than the student, and no result
    val, test = task.split("val"), task.split("test")
    logits = task.predict(model, test.x)
    temperature = metrics.optimal_temperature(task.predict(model, val.x), val.y)
    share, confidence, correct = metrics.reliability(logits.softmax(1), test.y)
    diagram = {"share": share.tolist(), "confidence": confidence.tolist(), "accuracy": correct.tolist()}
    task.artifact("reliability.json").write_text(json.dumps(diagram))
    seen = json.loads(task.artifact("training.json").read_text())
    return task.score(model) | {
        "adaptive_ece": metrics.adaptive_ece(logits.softmax(1), test.y),
        "recalibration_temperature": temperature,
        "ece_recalibrated": metrics.ece((logits / temperature).softmax(1), test.y),
        "large_top1": metrics.accuracy(task.predict(large, test.x), test.y),
        "overconfident_share": seen["overconfident"],
    }

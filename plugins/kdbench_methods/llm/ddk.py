"""DDK: Distilling Domain Knowledge for Efficient Large Language Models.

Liu et al., NeurIPS 2024. A student lags behind its teacher more in some domains than in others, and distillation that
does not look at domains spends its steps where little is left to learn. With l_S[i] and l_T[i] the perplexities of
student and teacher on a validation set of domain i, N the number of domains:

* domain discrepancy factor (section 3.2, eq. 1): r_0[i] = exp(l_S[i] / l_T[i]) / sum_j exp(l_S[j] / l_T[j]);
* sampling (section 3.2): the domain of every training sequence is drawn from r; a domain that is used up starts again;
* factor smooth updating (section 3.3, eq. 2), after every K steps: with psi[i] = r_t[i] exp(l_S[i] / l_T[i]) measured
  now, r_t+1[i] = alpha psi[i] / sum_j psi[j] + (1 - alpha) / N. It remembers r_t, and no domain falls below
  (1 - alpha) / N;
* loss (section 3.4, eq. 3): CE(y, q) + gamma T^2 KL(p_T || q_T).

The teacher's perplexities are computed once, the student's at every update, on validation data alone. ``mixture`` has
the ablations of the paper (section 4.3): ``direct`` is eq. 1 anew at each interval (without factor smoothing),
``uniform`` draws equally (ES); ``initial`` keeps r_0, ``corpus`` draws as the corpus is, with ``gamma: 0`` continued
pre-training. ``discrepancy: ratio`` takes l_S / l_T itself in place of its exponential, ``start: uniform`` begins with
1 / N.

Evaluation adds the ratio of perplexities l_S / l_T on the test data by domain, their mean and the worst; mean
perplexity over the domains; how r moved (``r_variation``: summed total variation distance from interval to interval,
``r_variance``: variance over the intervals, mean over the domains), its smallest value, and the share of sequences that
each domain got. What validation cost is metered (``validation_samples``, ``flops``), the trajectory of perplexities and
r is in ``domains.json``. The benchmarks of knowledge and reasoning that the paper reports are beyond students of this
size.
"""

import json
from typing import Literal

import numpy as np
import torch
from scipy.special import softmax

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.domains import MixtureLoader, domain_losses, model_nll, rows_by_domain, teacher_nll
from kdbench.tracks.llm.scoring import scored_tokens
from kdbench.training.mixtures import Mixture
from kdbench.training.state import Values

PAPER = Paper(
    slug="ddk",
    title="DDK: Distilling Domain Knowledge for Efficient Large Language Models",
    year=2024,
    authors=[
        "Jiaheng Liu",
        "Chenchen Zhang",
        "Jinyang Guo",
        "Yuanxing Zhang",
        "Haoran Que",
        "Ken Deng",
        "Zhiqi Bai",
        "Jie Liu",
        "Ge Zhang",
        "Jiakai Wang",
        "Yanan Wu",
        "Congnan Liu",
        "Wenbo Su",
        "Jiamang Wang",
        "Lin Qu",
        "Bo Zheng",
    ],
    venue="NeurIPS",
    arxiv="2407.16154",
    track="llm",
    source="paper",
    tasks=["text"],
    requires=["logits"],
    tags=["data-selection", "off-policy", "pre-training", "curriculum"],
    claims=[
        Compare(
            metric="worst_ppl_ratio",
            subject="ddk",
            reference={"method": "ddk", "params": {"mixture": "uniform"}},
            tasks=["text"],
            direction="min",
            note="At equal steps, the domain in which the student lags most lags less than with equal sampling.",
        ),
        Compare(
            metric="worst_ppl_ratio",
            subject="ddk",
            reference={"method": "ddk", "params": {"mixture": "corpus"}},
            tasks=["text"],
            direction="min",
            note="It also lags less than with distillation that does not look at domains.",
        ),
        Compare(
            metric="r_variation",
            subject="ddk",
            reference={"method": "ddk", "params": {"alpha": 1.0}},
            tasks=["text"],
            direction="min",
            note="Smoothing makes the domain discrepancy factor move less.",
        ),
        Compare(
            metric="mean_ppl_ratio",
            subject="ddk",
            reference={"method": "ddk", "params": {"mixture": "direct"}},
            tasks=["text"],
            direction="min",
            note="Factor smooth updating is better than the discrepancy factor itself.",
        ),
    ],
    departures=[
        "ten intervals instead of about thirty: in hundreds of steps shorter ones measure little but noise",
        "the first interval is drawn from r_0; Algorithm 1 computes r_0 but draws the first data at random",
        "at most 32 validation chunks a domain instead of 500, fewer where the task has fewer",
        "forward KL: eq. 3 writes the student first, its text and the results speak of standard distillation",
        "domains are those of the task; its student knows them unequally, from pre-training on the corpus as it is",
    ],
)


class DdkParams(Params):
    """How sequences are drawn from the domains, and the loss."""

    mixture: Literal["smooth", "direct", "initial", "uniform", "corpus"] = Field(
        "smooth",
        description="smooth: eq. 2; direct: eq. 1 at each interval; initial: eq. 1 once; uniform; corpus: as it is",
    )
    discrepancy: Literal["exp", "ratio"] = Field(
        "exp", description="of a domain: exp of the perplexity ratio, or the ratio itself"
    )
    start: Literal["discrepancy", "uniform"] = Field(
        "discrepancy", description="r_0 of smooth: eq. 1, or 1 / N for all domains"
    )
    alpha: float = Field(0.5, ge=0, le=1, description="smoothing coefficient; 1: no floor; 0: equal sampling")
    intervals: int = Field(10, ge=1, le=10_000, description="into which training is divided; r changes between them")
    gamma: float = Field(0.2, ge=0, le=100, description="weight of the KL; 0: cross-entropy alone, without a teacher")
    temperature: float = Field(
        1.0, gt=0, le=100, description="divides the logits of both; the KL has its square as factor"
    )
    val_chunks: int = Field(32, ge=1, le=100_000, description="largest number of validation chunks of each domain")


# --- domain discrepancy -----------------------------------------------------------------------------------------------


def log_discrepancy(student, teacher, kind="exp"):
    """log h of losses (N,) in nats per token: h is exp(l_S / l_T) (``exp``) or l_S / l_T (``ratio``), (N,)."""
    log_ratio = np.asarray(student, dtype=float) - np.asarray(teacher, dtype=float)
    return np.exp(log_ratio) if kind == "exp" else log_ratio


def factor(log_h):
    """Eq. 1: h / sum h, (N,)."""
    return softmax(log_h)


def smooth_update(r, log_h, alpha):
    """Eq. 2: alpha h r / sum h r + (1 - alpha) / N, (N,); a domain with r = 0 has psi = 0."""
    r = np.asarray(r, dtype=float)
    with np.errstate(divide="ignore"):
        return alpha * softmax(np.log(r) + log_h) + (1 - alpha) / len(r)


def variation(weights):
    """Sum over intervals of the total variation distance between successive r, of weights (T, N)."""
    return float(np.abs(np.diff(np.asarray(weights, dtype=float), axis=0)).sum() / 2)


class Discrepancy:
    """Losses of teacher and student on the validation chunks of each domain."""

    def __init__(self, task, names, limit):
        """``limit`` chunks of each of the domains ``names``, or all where there are fewer."""
        self.task, split = task, task.split("val")
        known = rows_by_domain(split)
        missing = [name for name in names if name not in known]
        if missing:
            raise JobError(f"no validation data of the domains {', '.join(missing)}; raise data.val")
        chosen = [known[name][:limit] for name in names]
        self.sequences = split.sequences.rows(torch.cat(chosen))
        self.rows = torch.arange(len(self.sequences)).split([len(rows) for rows in chosen])
        self.teacher = domain_losses(teacher_nll(task, "val"), split.sequences, chosen)

    def student(self, model):
        """Mean NLL of each domain (N,), measured now."""
        self.task.budget.spend("validation_samples", len(self.sequences))
        return domain_losses(model_nll(self.task, model, self.sequences), self.sequences, self.rows)


# --- training ---------------------------------------------------------------------------------------------------------


@hookimpl
def train(task, params):
    split, steps = task.split("train"), int(task.budget.remaining("steps"))
    domains = rows_by_domain(split)
    names = list(domains)
    if len(names) < 2:
        raise JobError(f"ddk needs data of at least two domains; task {task.spec.name} has {', '.join(names)}")
    student = task.student()
    counts = [len(rows) for rows in domains.values()]
    mixture = Mixture(list(domains.values()), task.spec.recipe.batch_size, task.generator("data"))
    loader = MixtureLoader(split.sequences, mixture, "train", task.device)
    every, history = max(1, steps // params.intervals), Values(rows=[])
    gap = Discrepancy(task, names, params.val_chunks) if params.mixture in ("smooth", "direct", "initial") else None

    def measure(step):
        """The next r, of the student as it is."""
        losses = gap.student(student)
        log_h = log_discrepancy(losses, gap.teacher, params.discrepancy)
        if step == 0 and params.mixture == "smooth" and params.start == "uniform":
            loader.mixture.reweigh([1.0] * len(names))
        elif step == 0 or params.mixture == "direct":
            loader.mixture.reweigh(factor(log_h))
        else:
            loader.mixture.reweigh(smooth_update(loader.mixture.weights.numpy(), log_h, params.alpha))
        ratio = np.exp(losses - gap.teacher)
        record(step, perplexity=np.exp(losses).tolist(), ratio=ratio.tolist())
        task.log(step, **{f"ppl_ratio/{name}": value for name, value in zip(names, ratio.tolist(), strict=True)})

    def record(step, **measured):
        r = loader.mixture.weights.tolist()
        history.rows = [*history.rows, {"step": step, "r": r, **measured}]
        task.log(step, **{f"r/{name}": value for name, value in zip(names, r, strict=True)})

    def on_step(step):
        if params.mixture in ("smooth", "direct") and step % every == 0 and step < steps:
            measure(step)

    def loss(model, batch):
        if params.gamma == 0:
            return {"ce": tok_mean(task.nll(model, batch))}
        tokens = task.tokens(model, batch)
        kl = tok_mean(fkl(tokens.student, tokens.teacher, temperature=params.temperature))
        return {"ce": tok_mean(tokens.nll), "kd": params.gamma * kl}

    if gap is not None:
        measure(0)
    else:
        loader.mixture.reweigh(counts if params.mixture == "corpus" else [1.0] * len(names))
        record(0)
    task.fit(student, loss, loader=loader, steps=steps, on_step=on_step, state=[history])
    teacher = None if gap is None else np.exp(gap.teacher).tolist()
    table = {"domains": names, "teacher_perplexity": teacher, "history": history.rows, "drawn": loader.mixture.drawn}
    task.artifact("domains.json").write_text(json.dumps(table, indent=1))
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


@hookimpl
def evaluate(task, model):
    """Ratios of perplexities on the test data, and how the weights of the domains moved."""
    table = json.loads(task.artifact("domains.json").read_text())
    test, scores = task.split("test"), task.scores(model)
    domains = rows_by_domain(test)
    student = domain_losses(
        scores.examples["loss"] * scored_tokens(test.sequences), test.sequences, list(domains.values())
    )
    teacher = domain_losses(teacher_nll(task, "test"), test.sequences, list(domains.values()))
    ratios = np.exp(student - teacher)
    r, drawn = np.array([row["r"] for row in table["history"]]), np.array(table["drawn"])
    values = {
        "worst_ppl_ratio": float(ratios.max()),
        "mean_ppl_ratio": float(ratios.mean()),
        "mean_domain_perplexity": float(np.exp(student).mean()),
        "r_variation": variation(r),
        "r_variance": float(r.var(axis=0).mean()),
        "r_min": float(r.min()),
    }
    values |= {f"ppl_ratio/{name}": float(value) for name, value in zip(domains, ratios, strict=True)}
    values |= {f"drawn/{name}": float(n) for name, n in zip(table["domains"], drawn / drawn.sum(), strict=True)}
    return scores.metrics | values

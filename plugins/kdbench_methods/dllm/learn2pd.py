"""Learning to Parallel: a small filter learns which predictions of a frozen model are final, and they are committed.

Bao et al. 2025. 1. The model writes a response y* to each training prompt, one token per step. 2. The response is
written again by an oracle (*extremely greedy parallel decoding*): in each forward exactly those positions of the block
are committed whose prediction is the token of y*. Each forward gives a row: the confidences c of all positions of the
block, committed ones included, and which predictions are those of y*. 3. A filter h, one hidden layer of the size of
the block B, learns the rows by cross-entropy: sigmoid(h(c)_i) is the probability that prediction i is final,

    h(c) = W_2 relu(W_1 c + b_1) + b_2,   c in [0, 1]^B.

4. Decoding commits the masked positions of the block with sigmoid(h(c)_i) > theta, and always the surest one. The
filter has no need of the text, its features or the vocabulary. 5. *End-of-text prediction*: as soon as an end is
committed, all that is behind it leaves the canvas and is never forwarded.

``evaluate`` adds the oracle's forwards (``oracle_nfe``, every position being written); of a replay of the test prompts
``false_commit``, the share of what the filter accepts that is wrong, and ``found``, the share of right predictions that
it accepts; and of the end of the text, the prompts whose tokens up to it are not as without it (``eotp_changed``) and
the share of forwarded tokens that are saved (``eotp_saved``).
"""

from typing import Literal

import torch
from torch.nn import functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.dllm.blocks.replay import parts, replay, verdicts
from kdbench.tracks.dllm.decoders.oracle import OracleDecoder
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.filters import BlockFilter, Learned
from kdbench.training.best import BestWeights

PAPER = Paper(
    slug="learn2pd",
    title="Learning to Parallel: Accelerating Diffusion Large Language Models via Adaptive Parallel Decoding",
    year=2025,
    authors=["Wenrui Bao", "Zhiben Chen", "Dan Xu", "Yuzhang Shang"],
    track="dllm",
    arxiv="2509.25188",
    source="code",
    tasks=["*"],
    requires=["samples", "weights"],
    tags=["policy", "frozen-model"],
    claims=[
        Compare(
            metric="nfe",
            subject="oracle",
            reference={"method": "learn2pd", "params": {"eotp": "never"}},
            tasks=["fixed", "random", "arith"],
            kind="noninferior",
            note="The oracle is the bound of what a filter can reach without an end of the text.",
        ),
        Compare(
            metric="nfe",
            subject={"method": "learn2pd", "params": {"eotp": "never"}},
            reference="seq",
            tasks=["fixed", "random", "arith"],
            note="Fewer forwards than one token per step.",
        ),
        Compare(
            metric="accuracy",
            subject="learn2pd",
            reference="seq",
            tasks=["add", "arith", "fixed", "random"],
            kind="noninferior",
            margin=0.02,
            note="The accuracy of one token per step is kept.",
        ),
        Compare(
            metric="aup",
            subject={"method": "learn2pd", "params": {"eotp": "never"}},
            reference="threshold",
            tasks=["fixed", "random", "arith"],
            note="More right tokens per forward than any threshold, of the filter alone.",
        ),
        Compare(
            metric="eotp_changed",
            subject="learn2pd",
            reference=0.0,
            tasks=["add", "arith", "fixed", "random"],
            kind="noninferior",
            margin=0.02,
            direction="min",
            note="The end of the text changes nothing before it.",
        ),
        Compare(
            metric="forwarded_tokens",
            subject="learn2pd",
            reference={"method": "learn2pd", "params": {"eotp": "never"}},
            tasks=["fixed", "random", "arith"],
            note="What is behind the end is not forwarded.",
        ),
    ],
    departures=[
        "rows are split by prompt, not one by one: rows of one prompt are much alike",
        "the filter of the step with the lowest loss on held-out prompts is kept",
        "where no prediction of a block is right the oracle copies the rest at once, not after one more forward",
        "the filter computes in float64 when text is written, so that a result does not depend on the rest of a batch",
    ],
)


class Learn2pdParams(Params):
    """Data, filter and decoding."""

    theta: float = Field(0.9, gt=0, lt=1, description="probability above which a prediction is committed")
    eotp: Literal["truncate", "eos", "never"] = Field(
        "truncate",
        description="what is behind a committed end: it leaves the canvas at once, or when all before the end is "
        "written, or it is written as well (ablation)",
    )
    layers: int = Field(2, ge=1, le=8, description="linear maps of the filter")
    prompts: int = Field(400, ge=3, le=1000000, description="training prompts that are replayed")
    rows: Literal["all", "first"] = Field(
        "all", description="rows of all forwards, or of the first one of each block alone (ablation)"
    )
    filter_steps: float = Field(6.7, gt=0, le=1000, description="steps of the filter, as a multiple of the task's")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate of the filter, constant")


def filter_loss(net, rows):
    """Binary cross-entropy of the filter, the mean over all positions of all rows."""
    return F.binary_cross_entropy_with_logits(net(rows.confidence), rows.correct.float())


@hookimpl
def train(task, params):
    teacher, written = task.teacher(), task.trajectories(params.prompts)
    _, seen = replay(task, teacher, written.prompts, written.tokens)
    learned, val, held = parts(seen, len(written), task.generator("split"))
    if params.rows == "first":
        learned = learned[learned.masked.all(dim=1)]

    with task.seeded("filter"):
        net = task.place(BlockFilter(task.block, params.layers))
    steps = max(1, round(params.filter_steps * task.budget.steps()))
    best, every = BestWeights(net), max(1, steps // 50)

    def look(step):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                best.offer(step, float(filter_loss(net, val)))

    task.fit(
        net,
        filter_loss,
        loader=[learned],
        steps=steps,
        spend="aux_steps",
        on_step=look,
        state=[best],
        tag="filter",
        lr=params.lr,
        schedule="constant",
        warmup=0.0,
        clip=None,
    )
    best.restore()
    net.double().requires_grad_(False).eval()
    wrong, found = verdicts(net(held.confidence.double()).sigmoid() > params.theta, held)
    task.log(steps, filter_val=best.value, held_false_commit=wrong, held_found=found)
    policy = Learned(net, params.theta, task.spec.evaluation.thresholds)
    return PolicyDecoder(teacher, policy, stop=params.eotp)


@hookimpl
@torch.no_grad()
def evaluate(task, model, params):
    prompts = task.split("test").prompts
    _, seen = replay(task, task.teacher(), prompts, task.reference("test").tokens)
    accepted = model.policy.net(seen.confidence.double()).sigmoid() > params.theta
    wrong, found = verdicts(accepted, seen)

    with_end = task.decode(model, prompts)
    without = task.decode(PolicyDecoder(model.net, model.policy, [model.policy], "never"), prompts)
    place = torch.arange(task.length, device=with_end.tokens.device)
    before = place < with_end.lengths(task.eos)[:, None]
    oracle = task.decode(OracleDecoder(task.teacher()), prompts, stop="never")
    return task.score(model) | {
        "oracle_nfe": float(oracle.forwards.double().mean()),
        "false_commit": wrong,
        "found": found,
        "eotp_changed": float(((with_end.tokens != without.tokens) & before).any(dim=1).double().mean()),
        "eotp_saved": 1 - float(with_end.forwarded.sum() / without.forwarded.sum()),
    }

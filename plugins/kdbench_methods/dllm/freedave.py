"""FreeDave: what one token per step writes, in fewer forwards and without training.

With g(x) a static step (forward, commit the most confident masked position of the block), the states x, g(x), g(g(x)),
... are reproduced. From the predictions for x,

    draft_j = x with its j most confident positions committed,   j = 1..d,   draft_1 = g(x);

all drafts are forwarded as one batch, target_i = g(draft_i), and from best = 1 on

    best <- max { j > best : draft_j is contained in target_best, token for token }

until there is none. The text becomes draft_best, whose predictions are there already: the next round has no forward of
its own. The last position needs none at all. ``threshold`` > 0 is FreeDave++: draft 1 has every position of at least
that confidence, and so have the targets; then a jump may be a part of a static step, and the text another.

``evaluate`` adds ``accepted``, positions beyond draft 1 that a round has taken, and ``rounds`` per prompt.
"""

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.dllm.decoders.freedave import Drafting, FreeDave

PAPER = Paper(
    slug="freedave",
    title="Free Draft-and-Verification: Toward Lossless Parallel Decoding for Diffusion Large Language Models",
    year=2025,
    authors=["Shutong Wu", "Jiawei Zhang"],
    track="dllm",
    arxiv="2510.00294",
    source="code",
    tasks=["*"],
    requires=["weights"],
    tags=["lossless", "verification"],
    claims=[
        Compare(
            metric="agreement",
            subject="freedave",
            reference=1.0,
            tasks=["add", "arith", "edits", "fixed", "random", "squares"],
            kind="noninferior",
            note="It writes what one token per step writes, for every prompt.",
        ),
        Compare(
            metric="nfe",
            subject="freedave",
            reference="seq",
            tasks=["add", "arith", "edits", "fixed", "random", "squares"],
            note="It takes fewer forwards.",
        ),
        Compare(
            metric="nfe",
            subject={"method": "freedave", "params": {"drafts": 8}},
            reference={"method": "freedave", "params": {"drafts": 2}},
            tasks=["arith"],
            kind="noninferior",
            note="More drafts take no more forwards.",
        ),
    ],
    departures=[
        "the last position is committed without a forward, and drafts that fill the canvas are not forwarded",
        "without a cache a new block begins with the predictions of the last one: nothing has changed in between",
        "in a budget of forwards, which the paper has not, drafts of the needed size are taken unverified",
    ],
)


class FreedaveParams(Params):
    """Drafts and cache."""

    drafts: int = Field(4, ge=1, le=64, description="drafts of a round (d)")
    threshold: float = Field(0.0, ge=0, le=1, description="confidence for draft 1 (FreeDave++); 0: one token")
    eager: bool = Field(False, description="drafts reach beyond the block, earlier blocks first")
    cached: bool = Field(False, description="keys and values outside the block are those of its first forward")
    tree: bool = Field(False, description="with a cache: all drafts in one sequence that do not see each other")


@hookimpl
def train(task, params):
    how = Drafting(params.drafts, params.threshold, params.eager, params.tree)
    return FreeDave(task.teacher(), how, True if params.cached else None)


@hookimpl
def evaluate(task, model):
    written = task.decode(model, task.split("test").prompts)
    rounds = written.extra["rounds"].double()
    accepted = written.extra["accepted"].sum() / rounds.sum().clamp_min(1)
    return task.score(model) | {"accepted": float(accepted), "rounds": float(rounds.mean())}

"""ParallelBench: what parallel decoding costs, measured and by theory. An analysis: nothing is trained.

A step that commits the tokens S draws them from a product of marginals. The best such product has from their joint
distribution, given the state c, the divergence

    C(S | c) = sum_i H(Y_i | c) - H(Y_S | c)          (conditional total correlation),

which is 0 where a problem has one solution and cannot be lowered by any network where it has several. For n items, k of
them per step, exact marginals, random order and temperature 1, the probability of a right text is

    shuffle:         product over steps of m! / ((m - j)! m^j),                 m left, j = min(k, m)
    replace-random:  a(m) = (j / m)(1 - 1/m)^(j-1) + (1 - 1/m)^j a(m - j),      a(0) = 0.

``train`` returns the teacher with one of the strategies (number, threshold or factor, of four scores). ``evaluate``
adds: ``deviation``, the largest distance of a simulation with an exact predictor from the formulas, in standard errors;
``correlation``, the mean C of problems with several solutions, by enumeration; ``drop_single`` and ``drop_coupled``,
what accuracy falls from one token per step to all at once on problems with one and with several solutions;
``best_tpf``, the largest parallelism at 90 % of the accuracy of one token per step; ``oracle_tpf`` and
``oracle_accuracy``, with the best number for each sample; ``adaptive_gap``, what the strategy lacks of it;
``left_to_right``, Kendall's tau of the order of writing. All curves are in the artifact ``grid.json``, by operation.
"""

import json
from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.dllm.blocks.joints import CLOSED, deviation
from kdbench.tracks.dllm.blocks.tradeoff import grid, left_to_right, total_correlation
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import Factor, Threshold, TopK

PAPER = Paper(
    slug="parallelbench",
    title="ParallelBench: Understanding the Trade-offs of Parallel Decoding in Diffusion LLMs",
    year=2025,
    authors=[
        "Wonjun Kang",
        "Kevin Galim",
        "Seunghyuk Oh",
        "Minjae Lee",
        "Yuchen Zeng",
        "Shuibai Zhang",
        "Coleman Hooper",
        "Yuezhou Hu",
        "Hyung Il Koo",
        "Nam Ik Cho",
        "Kangwook Lee",
    ],
    venue="ICLR 2026",
    track="dllm",
    arxiv="2510.04767",
    source="code",
    tasks=["lists", "squares"],
    requires=["weights"],
    tags=["policy", "analysis"],
    claims=[
        Compare(
            metric="deviation",
            subject="parallelbench",
            reference=3.5,
            tasks=["random"],
            kind="noninferior",
            direction="min",
            note="Simulated with exact marginals, the share of right texts is that of the closed forms.",
        ),
        Compare(
            metric="drop_coupled",
            subject="parallelbench",
            reference=0.3,
            tasks=["random"],
            note="Where a problem has several solutions, accuracy is lost when tokens are committed together.",
        ),
        Compare(
            metric="drop_single",
            subject="parallelbench",
            reference=0.1,
            tasks=["random"],
            kind="noninferior",
            direction="min",
            note="Copying, which has one solution, loses next to nothing.",
        ),
        Compare(
            metric="adaptive_gap",
            subject={"method": "parallelbench", "params": {"strategy": "threshold", "value": 0.9}},
            reference=0.0,
            tasks=["random"],
            direction="max",
            note="With the best number for each sample more is written at once than a threshold finds.",
        ),
    ],
    departures=[
        "symbols in place of names, and networks of 0.1 M parameters that were trained on these operations alone",
        "text tasks (paraphrase, summary, words to a sentence) need a language model and a grammar score: left out",
        "samplers that mask tokens again are left out: the order of writing would not say what the canvases were",
        "the largest parallelism at 90 % of the accuracy of one token per step is a summary of ours",
    ],
)


class ParallelbenchParams(Params):
    """The strategy, and how much is simulated."""

    strategy: Literal["topk", "threshold", "factor"] = Field("topk", description="what decides how many are committed")
    value: float = Field(1.0, gt=0, le=4096, description="tokens per step, threshold, or factor, as the strategy says")
    order: Literal["confidence", "margin", "entropy", "random"] = Field("confidence", description="score of a position")
    samples: int = Field(1000, ge=100, le=1000000, description="simulated texts for each closed form")
    largest: int = Field(6, ge=2, le=7, description="items of the largest simulated list")


def simulations(samples, largest, generator):
    """Distance of each simulation from its closed form in standard errors, by operation, items and tokens per step."""
    return {
        f"{operation}/n{n}/k{k}": deviation(operation, n, k, samples, generator)
        for operation in CLOSED
        for n in sorted({min(4, largest), largest})
        for k in sorted({1, 2, n})
    }


@hookimpl
def train(task, params):
    if params.strategy == "topk":
        policy = TopK(max(1, round(params.value)), params.order)
    elif params.strategy == "threshold":
        policy = Threshold(params.value, params.order, task.spec.evaluation.thresholds)
    else:
        policy = Factor(params.value, params.order, task.spec.evaluation.factors)
    found = simulations(params.samples, params.largest, task.generator("simulation"))
    task.artifact("simulation.json").write_text(json.dumps(found) + "\n")
    return PolicyDecoder(task.teacher(), policy)


@hookimpl
def evaluate(task, model):
    official, data = task.score(model), task.split("test")
    coupled = task.kind.coupled(data)
    counts = sorted({1, 2, 4, task.length})
    found = grid(task, model.net, "test", counts, "confidence")
    simulated = json.loads(task.artifact("simulation.json").read_text())
    curves = {name: found.points(data.operation == number) for number, name in enumerate(data.names)}
    table = {"counts": counts, "curves (tokens per forward, accuracy)": curves, "simulations": simulated}
    task.artifact("grid.json").write_text(json.dumps(table, indent=1) + "\n")
    speed, accuracy = found.oracle()
    extra = {
        "deviation": max(simulated.values()),
        "best_tpf": found.best(),
        "oracle_tpf": speed,
        "oracle_accuracy": accuracy,
        "adaptive_gap": speed - official["tpf"],
        "left_to_right": left_to_right(task.decode(model, data.prompts), task.eos),
    }
    for name, rows in (("single", ~coupled), ("coupled", coupled)):
        if rows.any():
            extra[f"drop_{name}"] = found.drop(rows)
    if coupled.any():
        extra["correlation"] = total_correlation(task, "test", coupled)
    return official | extra

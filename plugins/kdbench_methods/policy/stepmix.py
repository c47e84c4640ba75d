"""StepMix: exploration whose every episode earns a share of what a safe baseline earns.

Known are a safe policy pi_b and the threshold gamma = (1 - alpha) V(pi_b). In every episode

1. transitions counted so far give a model, a bonus b, the upper bound Q_up and the optimistic policy pi_o = argmax Q_up
   (``kdbench.tracks.policy.blocks.conservative`` has the formulas);
2. candidate pi^j follows pi_b at the first j times and pi_o afterwards, j = 0 .. H; each gets a lower bound V_low, with
   the bonus subtracted and values clipped at 0;
3. V_low(pi^0) >= gamma: pi_o is played. V_low(pi^H) < gamma: pi_b is. Otherwise there is a j with
   V_low(pi^j) >= gamma > V_low(pi^(j-1)); these two differ at one time, where the *step mixture* plays
   (1 - rho) pi_b + rho pi_o with rho = (V_low(pi^j) - gamma) / (V_low(pi^j) - V_low(pi^(j-1))). Its lower bound is
   gamma, and its value is exactly (1 - rho) V(pi^j) + rho V(pi^(j-1)).

``variant="episode"`` is EpsMix: one coin an episode, pi_o with probability rho, otherwise pi_b; the guarantee is in
expectation over the coin. ``offline`` > 0 is the setting without a known baseline: as many logged episodes of the safe
policy are all that is seen of it, and pi_b is greedy in the lower bound of their model.
"""

from typing import Literal

import numpy as np

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.policy.blocks.conservative import (
    Confidence,
    MixedExploration,
    Model,
    candidates,
    choose_episode,
    choose_step,
    step_mixture,
)
from kdbench.tracks.policy.worlds.tabular import at_value, optimal
from kdbench.tracks.policy.worlds.tabular import evaluate as value_of

PAPER = Paper(
    slug="stepmix",
    title="Near-optimal Conservative Exploration in Reinforcement Learning under Episode-wise Constraints",
    authors=["Donghao Li", "Ruiquan Huang", "Cong Shen", "Jing Yang"],
    year=2023,
    venue="ICML 2023",
    track="policy",
    arxiv="2306.06265",
    source="paper",
    tasks=["online"],
    tags=["exploration", "safety"],
    claims=[
        Compare(
            metric="violations",
            subject="stepmix",
            reference=0.0,
            tasks=["online"],
            kind="noninferior",
            margin=0.05,
            note="no episode earns less than the threshold",
        ),
        Compare(
            metric="violations",
            subject="stepmix",
            reference="ucbvi",
            tasks=["online"],
            note="optimism without the constraint violates it in early episodes",
        ),
        Compare(
            metric="regret",
            subject="stepmix",
            reference="ucbvi",
            tasks=["online"],
            kind="ratio",
            margin=2.0,
            note="the regret is of the order of unconstrained optimism",
        ),
        Compare(metric="regret", subject="stepmix", reference="safe_baseline", tasks=["online"]),
        Compare(
            metric="regret",
            subject={"method": "stepmix", "params": {"constrained": False}},
            reference="ucbvi",
            tasks=["online"],
            kind="noninferior",
            margin=1e-6,
            note="with gamma = 0 it is optimism",
        ),
        Compare(
            metric="mixture_error",
            subject="stepmix",
            reference=0.0,
            tasks=["online"],
            kind="noninferior",
            margin=1e-9,
            direction="min",
            note="the value of a step mixture is the mixture of the two values",
        ),
    ],
    departures=[
        "The bonus takes the range of what is left to earn for the deviation, with small constants (bonus, c1, c2).",
        "Transitions do not depend on the time, and are counted over all times together.",
        "Of several possible j the smallest is taken.",
        "The logged episodes of offline > 0 also start the model that explores.",
    ],
)


class StepmixParams(Params):
    """How wide the bounds are, and how the two policies are mixed."""

    variant: Literal["step", "episode"] = Field(
        "step", description="step: StepMix; episode: EpsMix, one coin an episode"
    )
    constrained: bool = Field(True, description="false: gamma = 0, which is optimism alone")
    c1: float = Field(0.3, ge=0, le=100, description="of the part of the bonus that falls as 1 / sqrt(n)")
    c2: float = Field(0.05, ge=0, le=100, description="of the part of the bonus that falls as 1 / n")
    bonus: Literal["range", "variance"] = Field(
        "range", description="range: scaled to what is left to earn; variance: the form of the analysis"
    )
    offline: int = Field(
        0, ge=0, le=1000000, description="logged episodes that replace the known baseline; 0: it is known"
    )


KINDS = {"optimistic": 1.0, "mixed": 0.5, "baseline": 0.0}
CHOICES = {"step": choose_step, "episode": choose_episode}


@hookimpl
def train(task, params):
    sessions, kinds = task.sessions(), []
    sure = Confidence(params.c1, params.c2, bonus=params.bonus)
    for session in sessions:
        model = Model(session.rewards, session.start, session.horizon, session.episodes, sure)
        baseline, played = session.baseline, []
        if params.offline:
            logged = session.logged(params.offline)
            model.update(logged.states, logged.actions, logged.next_states)
            baseline = model.cautious()
        while session.left:
            choice = CHOICES[params.variant](model, baseline, session.threshold if params.constrained else 0.0)
            episode = session.play_mixture(choice.policies, choice.weights)
            model.update(episode.states, episode.actions, episode.next_states)
            played.append(KINDS[choice.kind])
        kinds.append(played)
    return MixedExploration.of(task.explored(sessions), np.array(kinds))


def mixture_error(mdps, safe, rng):
    """Largest |V(mixture) - (1 - rho) V(pi^j) - rho V(pi^(j-1))| over the processes and all j, by exact evaluation."""
    worst = 0.0
    for mdp in mdps:
        baseline, bold = at_value(mdp, safe), optimal(mdp).policy
        values = [value_of(mdp, table).value for table in candidates(baseline, bold)]
        for j in range(1, mdp.horizon + 1):
            rho = rng.random()
            mixed = value_of(mdp, step_mixture(baseline, bold, j, rho)).value
            worst = max(worst, abs(mixed - (1 - rho) * values[j] - rho * values[j - 1]))
    return worst


@hookimpl
def evaluate(task, model):
    """Official metrics; shares of optimistic, mixed and baseline episodes; processes with a violation; the identity."""
    kinds = model.optimistic
    return task.score(model) | {
        "optimistic_share": float((kinds == 1).mean()),
        "mixed_share": float((kinds == 0.5).mean()),
        "baseline_share": float((kinds == 0).mean()),
        "violated_processes": float((model.violations > 0).mean()),
        "least_margin": float((model.values - model.threshold[:, None]).min()),
        "mixture_error": mixture_error(task.mdps(), task.spec.world.safe, task.rng("eval")),
    }

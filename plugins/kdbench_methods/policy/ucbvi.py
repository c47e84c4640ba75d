"""Optimism without a constraint: in every episode the policy of an upper bound of the value is played.

Azar, Osband and Munos, ICML 2017. Transitions are counted; with the model P^ and a bonus b backward induction gives
Q_up(h, s, a) = min(H - h, r + P^ V_up(h + 1) + b) and the policy argmax_a Q_up. Nothing keeps early episodes from
earning less than the safe baseline.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.conservative import Confidence, Model

BASELINE = Baseline(
    slug="ucbvi",
    title="Optimistic value iteration",
    track="policy",
    tasks=["online"],
    tags=["exploration"],
    reference="Azar et al., ICML 2017, arXiv 1703.05449",
)


class UcbviParams(Params):
    """How wide the bounds are."""

    c1: float = Field(0.3, ge=0, le=100, description="of the part of the bonus that falls as 1 / sqrt(n)")
    c2: float = Field(0.05, ge=0, le=100, description="of the part of the bonus that falls as 1 / n")
    bonus: Literal["range", "variance"] = Field(
        "range", description="range: scaled to what is left to earn; variance: the form of the analysis"
    )


@hookimpl
def train(task, params):
    sessions = task.sessions()
    sure = Confidence(params.c1, params.c2, bonus=params.bonus)
    for session in sessions:
        model = Model(session.rewards, session.start, session.horizon, session.episodes, sure)
        while session.left:
            played = session.play(model.optimistic().policy)
            model.update(played.states, played.actions, played.next_states)
    return task.explored(sessions)

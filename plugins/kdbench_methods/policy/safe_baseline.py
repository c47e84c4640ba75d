"""The safe baseline in every episode: no violation, and nothing is learned."""

from kdbench import Baseline, Params, hookimpl

BASELINE = Baseline(
    slug="safe_baseline",
    title="The safe baseline alone",
    track="policy",
    tasks=["online"],
    tags=["reference-point"],
)


class SafeBaselineParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    sessions = task.sessions()
    for session in sessions:
        while session.left:
            session.play(session.baseline)
    return task.explored(sessions)

"""DAgger: the expert is asked about the states that the student comes to.

Ross, Gordon, Bagnell, AISTATS 2011. A cloned student drives, the expert says at each of its steps what it would have
done, and the student goes on learning from all that was said so far. Of the steps of the budget each round has an equal
share; environment steps and the expert's answers are metered.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.cloning import step_loss
from kdbench.tracks.policy.blocks.labelling import Aggregate
from kdbench.tracks.policy.policies.gaussian import Gaussian

BASELINE = Baseline(
    slug="dagger",
    title="A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning (DAgger)",
    track="policy",
    tasks=["robots"],
    requires=["labels"],
    tags=["imitation", "on-policy"],
    reference="Ross, Gordon, Bagnell; AISTATS 2011, arXiv 1011.0686",
)


class DaggerParams(Params):
    """Rounds of asking."""

    rounds: int = Field(3, ge=1, le=20, description="times that the student drives and the expert answers")
    episodes: int = Field(40, ge=1, le=10000, description="episodes of each robot in a round, if the budget allows")


@hookimpl
def train(task, params):
    student, left = task.student(), task.budget.steps()
    rounds = min(params.rounds, max(1, left - 1))
    known = Aggregate(task.demonstrations())
    for number in range(rounds + 1):
        if number:
            longest = (rounds + 1 - number) * len(task.robots) * task.spec.world.steps
            room = task.budget.remaining("env_steps") // longest
            known.ask(task, Gaussian(student), int(max(1, min(params.episodes, room))), number)
        steps = left // (rounds + 1 - number)
        left -= steps
        loader = known.loader(task.spec.recipe.batch_size, task.generator(f"order/{number}"), task.device)
        task.fit(student, step_loss, loader=loader, steps=steps, tag=f"round{number}")
    return Gaussian(student)

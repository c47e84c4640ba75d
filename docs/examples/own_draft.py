"""A draft that learns from what the target writes."""

from kdbench import Baseline, hookimpl
from kdbench.losses.divergences import divergence
from kdbench.tracks.decoding.decoders.speculative import Speculative

CARD = Baseline(
    slug="own_draft",
    title="Total variation on samples of the target",
    track="decoding",
    tasks=["arith", "listops", "docs"],
    requires=["logits"],
)

distance = divergence("tvd")


@hookimpl
def train(task, params):
    draft, target = task.student(), task.teacher()
    drawn = task.generator("responses")

    def loss(model, batch):
        prompts = task.prompts_of("train", batch.index)
        written = task.rollout(target, prompts, max_new=task.spec.evaluation.max_new, generator=drawn)
        tokens = task.tokens(model, written)
        return distance(tokens.student, tokens.teacher).mean()

    task.fit(draft, loss)
    return Speculative(draft, task.spec.evaluation.gamma)

"""ImitKD: Autoregressive Knowledge Distillation through Imitation Learning (Lin et al., 2020).

Distillation as imitation of an expert: the student is trained on sequences of the data at first and, with a
probability that decays exponentially, more and more on its own; at every position the teacher says what it would have
done, either by its most probable token or by its whole distribution.
"""

from typing import Literal

from torch.nn import functional as F

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.training.rollouts import MixedBatches, sampler

BASELINE = Baseline(
    slug="imitkd",
    title="Autoregressive Knowledge Distillation through Imitation Learning",
    track="llm",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["on-policy", "divergence"],
    reference="Lin, Wohlwend, Chen, Lei; EMNLP 2020, arXiv 2009.07253",
)


class ImitKdParams(Params):
    """The decay of the data, the expert's advice and the sampling."""

    final_data: float = Field(0.005, gt=0, le=1, description="probability of a batch of the data at the last step")
    advice: Literal["full", "top1"] = Field(
        "full", description="the teacher's distribution (forward KL) or its most probable token (cross-entropy)"
    )
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which the student samples")
    max_new: int = Field(24, ge=1, le=4096, description="longest sampled response in tokens")
    steps_fraction: float = Field(0.4, gt=0, le=1, description="share of the task's steps: sampling makes them dearer")


def own_share(step, steps, final_data):
    """Probability that step ``step`` (0-based) of ``steps`` trains on samples: 0 first, ``1 - final_data`` last."""
    return 1 - final_data ** (step / max(1, steps - 1))


@hookimpl
def train(task, params):
    student = task.student()
    steps = task.budget.steps(params.steps_fraction)
    sample = sampler(task, student, max_new=params.max_new, temperature=params.sampling_temperature)
    batches = MixedBatches(
        task.train_loader(), sample, lambda step: own_share(step, steps, params.final_data), task.rng("mix")
    )

    def loss(model, batch):
        tokens = task.tokens(model, batch)
        if params.advice == "full":
            return tok_mean(fkl(tokens.student, tokens.teacher))
        return tok_mean(F.cross_entropy(tokens.student, tokens.teacher.argmax(-1), reduction="none"))

    task.fit(student, loss, loader=batches, steps=steps)
    return student

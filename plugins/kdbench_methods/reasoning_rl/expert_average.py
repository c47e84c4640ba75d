"""The mean of the experts' weights: several teachers of one origin put together without any training.

Wortsman et al., ICML 2022. Networks that were fine-tuned from the same weights can be averaged. What distillation from
several experts of the student's size has to beat.
"""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.reasoning_rl.blocks.experts import average, experts_of

BASELINE = Baseline(
    slug="expert_average",
    title="Model soups: averaging weights of multiple fine-tuned models (of the domain experts)",
    track="reasoning_rl",
    tasks=["mixed"],
    requires=["weights"],
    tags=["no-distillation", "multi-teacher"],
    reference="Wortsman, Ilharco, Gadre, Roelofs, et al.; ICML 2022, arXiv 2203.05482",
)


class ExpertAverageParams(Params):
    """None: all experts have the same share."""


@hookimpl
def train(task):
    experts = list(experts_of(task).values())
    return average(experts, [1.0] * len(experts), task.student()).eval()

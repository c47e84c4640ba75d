"""SeqKD: Sequence-Level Knowledge Distillation (Kim and Rush, 2016).

The student is trained by cross-entropy on responses that the teacher gives to training prompts: a sample of the
teacher's distribution over whole sequences instead of its distribution over each token. The teacher's logits are never
needed.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.training.distill import hard_loss
from kdbench.training.loaders import Order
from kdbench.training.replay import batch_of, rows_of
from kdbench.training.rollouts import sampler

BASELINE = Baseline(
    slug="seqkd",
    title="Sequence-Level Knowledge Distillation",
    track="llm",
    tasks=["instruct", "text"],
    requires=["samples"],
    tags=["off-policy", "teacher-samples"],
    reference="Kim, Rush; EMNLP 2016, arXiv 1606.07947",
)


class SeqKdParams(Params):
    """How many responses the teacher gives, and how."""

    responses: int = Field(1024, ge=1, le=1000000, description="of the teacher, sampled before training starts")
    sampling_temperature: float = Field(1.0, ge=0, le=10, description="at which the teacher answers; 0: greedily")
    max_new: int = Field(24, ge=1, le=4096, description="longest response in tokens")
    sampling_batch: int = Field(128, ge=1, le=4096, description="responses that are sampled at once")


class Responses(Order):
    """A fixed set of sequences as batches in random order; each iteration is one epoch."""

    def __init__(self, rows, like, size, generator):
        super().__init__(len(rows), size, generator)
        self.rows, self.like = rows, like

    def __iter__(self):
        return map(self.batch, super().__iter__())

    def batch(self, chosen):
        """The sequences at some positions."""
        return batch_of([self.rows[i] for i in chosen.tolist()], self.like)


@hookimpl
def train(task, params):
    student = task.student()
    size = task.spec.recipe.batch_size
    wanted = min(params.responses, int(task.budget.remaining("steps")) * size)  # no more than can be trained on
    sample = sampler(
        task, task.teacher(), max_new=params.max_new, temperature=params.sampling_temperature, purpose="teacher"
    )
    rows = []
    while len(rows) < wanted:
        rows += rows_of(sample(min(params.sampling_batch, wanted - len(rows))))
    like = next(iter(task.train_loader()))
    task.fit(student, hard_loss(task), loader=Responses(rows, like, size, task.generator("order")))
    return student

"""Forward KL of whole next-token distributions on responses that the teacher has written: distillation off policy."""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.reasoning_rl.blocks.scoring import frozen_logits, token_logits
from kdbench.tracks.reasoning_rl.blocks.traces import loader_of, traces

BASELINE = Baseline(
    slug="kd_fwd",
    title="Forward-KL distillation on the teacher's responses",
    track="reasoning_rl",
    tasks=["*"],
    requires=["logits"],
    tags=["off-policy", "divergence", "teacher-samples"],
    reference="Hinton, Vinyals, Dean; 2015, arXiv 1503.02531",
)


class KdFwdParams(Params):
    """What the teacher writes, and the divergence."""

    problems: int = Field(1024, ge=1, le=1000000, description="training problems that the teacher answers")
    sampling_temperature: float = Field(0.6, gt=0, le=10, description="at which its responses are sampled")
    temperature: float = Field(1.0, gt=0, le=100, description="of both distributions in the loss")
    rows: int = Field(8, ge=1, le=256, description="responses a step, as a multiple of the recipe's batch size")


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()
    written = traces(task, teacher, params.problems, temperature=params.sampling_temperature, verified=False)

    def loss(model, batch):
        told = frozen_logits(task, teacher, batch)
        return tok_mean(fkl(token_logits(model, batch), told, temperature=params.temperature))

    task.fit(student, loss, loader=loader_of(task, written, params.rows * task.spec.recipe.batch_size))
    return student

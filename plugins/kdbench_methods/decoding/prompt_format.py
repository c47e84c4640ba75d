"""Prompting: the target reads the task and the instruction on its output format in one prompt, and writes freely."""

from kdbench import Baseline, Params, hookimpl
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive

BASELINE = Baseline(
    slug="prompt_format",
    title="Prompting for the task and its format",
    track="decoding",
    tasks=["formats"],
    tags=["constrained-decoding", "reference-point"],
)


class PromptFormatParams(Params):
    """None: nothing is trained."""


@hookimpl
def train(task):
    return Autoregressive()


@hookimpl
def evaluate(task, model):
    scores = task.score(model) | task.kind.study(task, model)
    # what the same target solves where nothing is said of a format: the cost of asking for both at once
    alone = task.decode(model, task.kind.task_prompts(task, "test").ids)
    texts = task.tokenizer.batch_decode(alone.tokens, skip_special_tokens=True)
    solved = task.kind.judge(task.split("test").rows, texts)["task_accuracy"]
    return scores | {"task_accuracy_alone": float(solved.mean())}

"""PGKD: Performance-Guided LLM Knowledge Distillation for Text Classification (Di Palo et al., EMNLP 2024).

A teacher that writes grows a student's few labelled texts, told again and again what the student is weak at:

1. train the student on the texts so far, from its weights of the round before;
2. measure it on the validation data: precision, recall and F1 by class, and which classes it confuses;
3. mine hard negatives, the mistakes that it is surest of, with their true classes;
4. send the teacher the classes, right and wrong examples, hard negatives and the report. It writes ``per_round`` texts,
   the more of a class the lower its F1 and the oftener it is confused, starting from the hard negatives;
5. drop what the verifier takes for a text of another class, what repeats validation data (the guard: they are shown to
   the teacher, and never trained on) and what repeats itself; add the rest.

It ends after ``rounds``, or when the validation score has not improved for ``patience`` of them, with the best weights.
``feedback`` holds the comparisons: the same loop with even quotas and nothing told, all texts at once, the seeds alone.

The teacher that writes is a small language model of the pool of all docstrings, conditioned on a class and an example,
which comes with the task. It also checks what it has written: by the probability of a text under each class.
``author="hosted"`` asks a model behind an endpoint of the OpenAI protocol in its place. ``evaluate`` adds the F1 of the
tail, the accuracy of the author asked to classify, FLOPs of each for a thousand predictions, what the loop did, and the
share of written texts that repeat test data.
Prompting Claude 3 and a BERT student on AG News to Amazon Reviews (335 classes) are out of reach at this scale.
"""

import json
from dataclasses import asdict
from typing import Literal

import numpy as np

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.llm.blocks.authors import (
    LocalAuthor,
    Request,
    asked_to_classify,
    author_network,
    per_thousand,
)
from kdbench.tracks.llm.blocks.guidance import Guard, hard_negatives, performance, quotas
from kdbench.tracks.llm.blocks.hosted import HostedAuthor
from kdbench.tracks.llm.data.encoding import encode_classes
from kdbench.tracks.llm.evaluate import class_logits
from kdbench.training.best import BestWeights
from kdbench.training.distill import hard_loss

PAPER = Paper(
    slug="pgkd",
    title="Performance-Guided LLM Knowledge Distillation for Efficient Text Classification at Scale",
    year=2024,
    authors=["Flavio Di Palo", "Prateek Singhi", "Bilal Fadlallah"],
    venue="EMNLP",
    track="llm",
    arxiv="2411.05045",
    source="paper",
    tasks=["classify-seeds"],
    requires=["samples", "logits"],
    tags=["data-generation", "active", "long-tail", "black-box"],
    claims=[
        Compare(
            metric="macro_f1",
            subject={"method": "pgkd", "params": {"patience": 100}},
            reference={"method": "pgkd", "params": {"feedback": "uniform", "patience": 100}},
            tasks=["classify-seeds"],
            note="At equal teacher queries, guided allocation beats even allocation.",
        ),
        Compare(
            metric="tail_f1",
            subject={"method": "pgkd", "params": {"patience": 100}},
            reference={"method": "pgkd", "params": {"feedback": "uniform", "patience": 100}},
            tasks=["classify-seeds"],
            note="On the classes of the tail, too.",
        ),
        Compare(
            metric="macro_f1",
            subject={"method": "pgkd", "params": {"patience": 100}},
            reference={"method": "pgkd", "params": {"feedback": "one-shot", "patience": 100}},
            tasks=["classify-seeds"],
            note="And the same number of texts written at once.",
        ),
        Compare(metric="macro_f1", subject="pgkd", reference="sft", tasks=["classify-seeds"]),
        Compare(
            metric="gain_decline",
            subject={"method": "pgkd", "params": {"patience": 100}},
            reference=0.0,
            tasks=["classify-seeds"],
            note="The gain per query is larger in the first half of the rounds than in the second.",
        ),
        Compare(
            metric="stopped_early",
            subject="pgkd",
            reference=0.5,
            tasks=["classify-seeds"],
            note="Early stopping triggers in most runs.",
        ),
    ],
    departures=[
        "prompts, quotas and the verifier are our reading; the paper leaves the allocation to the prompted teacher",
        "the score that stops is macro-F1 on the validation data (stop_on=loss: the loss, as in the paper)",
        "the teacher that writes is a small language model of the classes' texts in place of Claude 3",
        "hard negatives are mined in validation data too, behind the guard: the student knows its seeds by heart",
    ],
)


class PgkdParams(Params):
    """The loop, what the teacher is told, what is let through, and who writes."""

    feedback: Literal["guided", "uniform", "one-shot", "seeds"] = Field(
        "guided", description="uniform: even quotas and nothing told; one-shot: so, all at once; seeds: nothing written"
    )
    rounds: int = Field(6, ge=1, le=1000, description="of writing at most; training has one more")
    per_round: int = Field(60, ge=1, le=1000000, description="texts asked for in each round")
    patience: int = Field(2, ge=1, le=1000, description="rounds without improvement after which it ends")
    stop_on: Literal["macro_f1", "loss"] = Field("macro_f1", description="validation score that has to improve")
    report: bool = Field(True, description="guided: quotas follow the report by class (false: an ablation)")
    hard: bool = Field(True, description="guided: hard negatives and mistakes are sent (false: an ablation)")
    mined: Literal["train", "both"] = Field("both", description="where mistakes are looked for; both: validation, too")
    shown: int = Field(16, ge=0, le=10000, description="examples, mistakes and hard negatives in a request, of each")
    confusion_weight: float = Field(1.0, ge=0, le=100, description="of confusions beside 1 - F1 in the quotas")
    verifier: Literal["author", "classifier", "none"] = Field(
        "author", description="who checks labels: the teacher that wrote the texts, the task's classifier, or nobody"
    )
    verify_top: int = Field(
        1, ge=1, le=1000, description="the label has to be among this many classes that it finds most probable"
    )
    overlap: float = Field(0.5, ge=0, le=1, description="guard: largest share of runs of four words in common")
    author: Literal["local", "hosted"] = Field("local", description="who writes: the language model, or an endpoint")
    temperature: float = Field(0.8, gt=0, le=10, description="at which texts are written")
    top_p: float = Field(0.95, gt=0, le=1, description="local: probability that tokens are drawn from")
    base_url: str = Field("", description="hosted: address up to and without /chat/completions")
    model: str = Field("", description="hosted: name of the model")
    key_env: str = Field("OPENAI_API_KEY", description="hosted: environment variable with the key; empty: none needed")
    zero_shot: int = Field(120, ge=1, le=100000, description="test texts that the local author is asked to classify")


def author_of(task, params):
    """The teacher that writes."""
    if params.author == "hosted":
        where = {name: getattr(params, name) for name in ("base_url", "model", "key_env", "temperature")}
        return HostedAuthor(**where, spend=task.budget.spend)
    return LocalAuthor(task, author_network(task), params.temperature, params.top_p)


def encoded(task, data):
    """Labelled texts as tokens."""
    texts, labels = zip(*data, strict=True)
    return encode_classes(texts, labels, task.tokenizer, task.spec.data.length)


def request_of(task, params, student, data, rng):
    """What the teacher is asked for and told after a round."""
    classes, total = task.num_classes, params.per_round * (params.rounds if params.feedback == "one-shot" else 1)
    if params.feedback != "guided":
        shown = [data[i] for i in rng.permutation(len(data))[: params.shown]]
        return Request(task.class_names, tuple(quotas(None, classes, total).tolist()), tuple(shown))
    val = task.split("val")
    known = [(row.text, row.label) for row in val.rows]
    on_val = class_logits(student, val.sequences, "val", task.device).softmax(-1).numpy()
    on_data = class_logits(student, encoded(task, data), "", task.device).softmax(-1).numpy()
    labels = np.array([label for _, label in [*data, *known]])
    found = performance(on_val.argmax(1), labels[len(data) :], classes) if params.report else None
    right = [data[i] for i in rng.permutation(np.flatnonzero(on_data.argmax(1) == labels[: len(data)]))[: params.shown]]
    pool, probabilities = (data, on_data) if params.mined == "train" else ([*data, *known], [*on_data, *on_val])
    texts = [text for text, _ in pool]
    mistakes = hard_negatives(np.array(probabilities), texts, labels[: len(pool)], len(pool)) if params.hard else []
    surest, others = mistakes[: params.shown], mistakes[params.shown :]
    others = [others[i] for i in rng.permutation(len(others))[: params.shown]]
    wanted = quotas(found, classes, total, params.confusion_weight)
    return Request(task.class_names, tuple(wanted.tolist()), tuple(right), tuple(others), tuple(surest), found)


def admitted(task, params, guard, author, written):
    """Written texts (text, label) that the verifier and the guard let through, and how many the verifier did not."""
    agreed, top = written, min(params.verify_top, task.num_classes)
    if params.verifier != "none" and written:
        if params.verifier == "author":
            likely = author.probable([text for text, _ in written], task.class_names, top)
        else:
            logits = class_logits(task.teacher(), encoded(task, written), "", task.device)
            likely = logits.topk(top, dim=1).indices.tolist()
        agreed = [pair for pair, guesses in zip(written, likely, strict=True) if pair[1] in guesses]
    return [pair for pair in agreed if pair[0] and guard.admit(pair[0])], len(written) - len(agreed)


@hookimpl
def train(task, params):
    student, rng = task.student(), task.rng("shown")
    data = [(row.text, row.label) for row in task.split("train").rows]
    guard = Guard(params.overlap)
    guard.add((row.text for row in task.split("val").rows), protected=True)
    guard.add((text for text, _ in data), protected=False)
    author = None if params.feedback == "seeds" else author_of(task, params)
    best, steps, seeds, rounds = BestWeights(student), task.budget.steps(1 / (params.rounds + 1)), len(data), []
    for number in range(params.rounds + 1):
        task.fit(student, hard_loss(task), loader=task.loader(encoded(task, data)), steps=steps, tag=f"round{number}")
        values = task.validate(student)
        best.offer(number, values["nll"] if params.stop_on == "loss" else -values["macro_f1"])
        task.log(number * steps + steps, texts=len(data), **{f"val_{name}": value for name, value in values.items()})
        rounds.append({"validation": values, "texts": len(data), "queries": task.budget.spent["teacher_queries"]})
        finished = number == params.rounds or task.budget.remaining("steps") < steps
        if finished or number - best.step >= params.patience:
            break
        if author is not None and (number == 0 or params.feedback != "one-shot"):
            request = request_of(task, params, student, data, rng)
            written = author.generate(request)
            new, refused = admitted(task, params, guard, author, written)
            data += new
            counts = {"written": len(written), "refused": refused, "leaks": guard.leaks, "repeats": guard.repeats}
            rounds[-1] |= counts | {"added": len(new), "request": asdict(request)}
    best.restore()
    record = {"rounds": rounds, "best": best.step, "synthetic": data[seeds:]}
    task.artifact("rounds.json").write_text(json.dumps(record) + "\n")
    return student


def summary(rounds, params):
    """What the loop did, from its record."""
    scores = [row["validation"]["macro_f1"] for row in rounds]
    queries = [row["queries"] for row in rounds]
    gains = [
        100 * (b - a) / max(1, m - n) for a, b, n, m in zip(scores, scores[1:], queries, queries[1:], strict=False)
    ]
    half = len(gains) // 2
    last = [row for row in rounds if "written" in row][-1:]
    counts = {name: sum(row.get(name, 0) for row in rounds) for name in ("written", "refused", "added")}
    return {f"texts_{name}": value for name, value in counts.items()} | {
        "texts_leaked": last[0]["leaks"] if last else 0,
        "texts_repeated": last[0]["repeats"] if last else 0,
        "rounds": len(rounds) - 1,
        "stopped_early": len(rounds) <= params.rounds,
        "gain_decline": float(np.mean(gains[:half]) - np.mean(gains[half:])) if half else 0.0,
    }


@hookimpl
def evaluate(task, model, params):
    values, test = task.score(model), task.split("test")
    record = json.loads(task.artifact("rounds.json").read_text())
    values |= summary(record["rounds"], params)
    guess = class_logits(model, test.sequences, "test", task.device).argmax(1).numpy()
    found = performance(guess, test.sequences.labels.numpy(), task.num_classes)
    rarest = np.argsort(np.bincount(task.split("pool").sequences.labels, minlength=task.num_classes), kind="stable")
    tail = rarest[: max(1, task.num_classes // 3)]
    values |= {"tail_f1": float(found.f1[tail].mean()), "head_f1": float(np.delete(found.f1, tail).mean())}
    guard = Guard(params.overlap)
    guard.add((row.text for row in test.rows), protected=True)
    values["test_overlap"] = float(np.mean([bool(guard.repeated(text)) for text, _ in record["synthetic"]] or [0.0]))
    (mine, seconds), (theirs, slow) = per_thousand(task, model), per_thousand(task, task.teacher())
    values |= {"gflops_per_1k": mine, "gflops_per_1k_teacher": theirs, "teacher_cost_ratio": theirs / mine}
    if params.author == "local" and params.feedback != "seeds":
        asked = asked_to_classify(task, params.zero_shot)
        values |= {f"author_{name}": value for name, value in asked.items()}
    by_class = {name: asdict(row) for name, row in zip(task.class_names, found.report, strict=True)}
    # wall-clock is no metric: it differs from run to run
    table = {"by_class": by_class, "seconds_per_1k": seconds, "seconds_per_1k_teacher": slow}
    task.artifact("classes.json").write_text(json.dumps(table, indent=1) + "\n")
    return values

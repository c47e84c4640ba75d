"""lm-evaluation-harness on a model as it is: on local files, or on any task that the harness knows.

For the tasks of :data:`DESCRIPTIONS`, descriptions and documents are written from the data of the task into a temporary
folder, and nothing is fetched. Other names are looked up in ``evaluation.harness_folder`` and among the harness's own
tasks, whose data sets come from the hub.
"""

from __future__ import annotations

import difflib
import io
import json
import logging
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from torch import nn

from kdbench.errors import JobError
from kdbench.task import seed_of
from kdbench.tracks.llm.data import families
from kdbench.tracks.llm.data.encoding import encode, pack
from kdbench.tracks.llm.data.instruct import split_of, template
from kdbench.tracks.llm.data.knowledge import RELATIONS, STATEMENTS, VALUES, Knowledge
from kdbench.tracks.llm.data.specs import InstructData, TextData
from kdbench.tracks.llm.evaluate import respond
from kdbench.tracks.llm.networks.models import scored_logits, targets_of
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask

CHOICES = 4
PROCEDURAL_ITEMS = 40
"""Documents of a procedural task where the task does not say how many."""

DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "facts": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    },
    "arithmetic": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
"""What the harness is told about each task, beside where its documents are."""


class Adapter(LM):
    """A model and its tokenizer as the harness sees them."""

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int, max_new: int) -> None:
        super().__init__()
        self.model, self.reader, self.size, self.max_new = model.eval(), tokenizer, batch_size, max_new

    @torch.no_grad()
    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether greedy decoding would give it."""
        contexts, ends = [request.args[0] for request in requests], [request.args[1] for request in requests]
        return self._score(encode(contexts, self.reader), encode(ends, self.reader))

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Log-probability in nats of each whole text."""
        texts = encode([request.args[0] for request in requests], self.reader)
        return [value for value, _ in self._score([[] for _ in texts], texts)]

    @torch.no_grad()
    def _score(self, contexts: list[list[int]], ends: list[list[int]]) -> list[tuple[float, bool]]:
        start = start_id(self.reader)
        rows = [[start, *context, *end] for context, end in zip(contexts, ends, strict=True)]
        sequences = pack(rows, [1 + len(context) for context in contexts], pad_id(self.reader))
        device, found = next(self.model.parameters()).device, []
        for batch in sequences.batches(self.size, "test"):
            batch = batch.to(device)
            log_q = scored_logits(self.model, batch).float().log_softmax(dim=-1)
            targets, row = targets_of(batch), batch.scored.nonzero()[:, 0]
            values = log_q.gather(-1, targets[:, None]).squeeze(1)
            sums = torch.zeros(len(batch), device=device).index_add(0, row, values)
            wrong = torch.zeros(len(batch), device=device).index_add(0, row, (log_q.argmax(-1) != targets).float())
            found += list(zip(sums.tolist(), (wrong == 0).tolist(), strict=True))
        return found

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Greedy responses, cut at the first stop string of each request."""
        prompts = [request.args[0] for request in requests]
        texts, _ = respond(self.model, prompts, self.reader, max_new=self.max_new, batch_size=self.size)
        return [cut(text, request.args[1].get("until", [])) for text, request in zip(texts, requests, strict=True)]


def cut(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings.

    >>> cut("12\\n13", ["\\n"])
    '12'
    """
    for stop in stops:
        text = text.split(stop, 1)[0] if stop else text
    return text


def documents(task: LLMTask, name: str) -> list[dict[str, Any]]:
    """Documents of a harness task, the same for every model: questions and sums that training does not show.

    Raises ``JobError`` for a name that there is no harness task of, or that does not fit the data.
    """
    data = task.spec.data
    if name not in DESCRIPTIONS:
        raise JobError(f"no harness task {name!r}; there are {', '.join(DESCRIPTIONS)}")
    if not isinstance(data, InstructData | TextData):
        raise JobError(f"harness tasks read the procedural data, which task {task.spec.name} does not have")
    rng = np.random.default_rng(seed_of(task.spec.name, "harness", name))
    count = task.spec.evaluation.harness_items or PROCEDURAL_ITEMS
    if name == "arithmetic":
        return [_sum(rng, data) for _ in range(count)]
    knowledge = Knowledge.make(data.persons, data.seed)
    rows = []
    for _ in range(count):
        person, relation = int(rng.integers(data.persons)), RELATIONS[int(rng.integers(len(RELATIONS)))]
        rows.append(_fact(rng, data, knowledge, person, relation, cloze=name == "cloze"))
    return rows


def _sum(rng: np.random.Generator, data: InstructData | TextData) -> dict[str, Any]:
    if isinstance(data, TextData):
        a, b = (int(number) for number in rng.integers(100, size=2))
        return {"prompt": f"{a} + {b} =", "target": f" {a + b}"}
    while True:
        draft = families.add(rng, int(rng.integers(data.difficulty[0], data.difficulty[1] + 1)))
        if split_of(draft.instruction) == "test":
            return {"prompt": template(draft.instruction), "target": draft.answers[0]}


def _fact(
    rng: np.random.Generator,
    data: InstructData | TextData,
    knowledge: Knowledge,
    person: int,
    relation: str,
    *,
    cloze: bool,
) -> dict[str, Any]:
    value, others = (
        knowledge.facts[relation][person],
        [v for v in VALUES[relation] if v != knowledge.facts[relation][person]],
    )
    if isinstance(data, InstructData):
        question, _ = knowledge.question(person, relation, knowledge.question_split(person, relation)[1])
        prompt, space = template(question), ""
    else:
        # the wording whose value stands last: what precedes it is the context
        wording = next(text for text in STATEMENTS[relation] if text.endswith(("{v}.", "{v} best.")))
        prompt, space = wording.split(" {v}")[0].format(p=knowledge.persons[person]), " "
    if cloze:
        return {"prompt": prompt, "target": space + value}
    wrong = [others[i] for i in rng.choice(len(others), size=CHOICES - 1, replace=False)]
    place = int(rng.integers(CHOICES))
    choices = [*wrong[:place], value, *wrong[place:]]
    return {"prompt": prompt, "choices": [space + choice for choice in choices], "answer": place}


def write_tasks(task: LLMTask, names: Sequence[str], folder: Path) -> None:
    """Write a YAML description and a JSON Lines file per harness task."""
    for name in names:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in documents(task, name)))
        description = {
            "task": f"kdbench_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "datasets")},
            "test_split": "test",
            **DESCRIPTIONS[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(description, sort_keys=False))


def manager_of(task: LLMTask, names: Sequence[str], folder: Path) -> TaskManager:
    """What finds the tasks called ``names``: files in ``folder`` and in the task's own; the harness's where needed.

    Raises ``JobError`` for a name that is in none of them.
    """
    own = task.spec.evaluation.harness_folder
    folders = [str(folder)] if own is None else [str(folder), str(Path(own).expanduser())]
    # its own tasks are thousands of files to read: only where a name is not found without them
    for include in (False, True):
        manager = TaskManager(include_path=folders, include_defaults=include)
        unknown = [name for name in names if name not in manager.all_tasks]
        if not unknown:
            return manager
    near = difflib.get_close_matches(unknown[0], [*DESCRIPTIONS, *manager.all_tasks], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise JobError(f"lm-evaluation-harness has no task {unknown[0]!r}{hint}")


def evaluate(task: LLMTask, model: nn.Module, names: Sequence[str]) -> dict[str, float]:
    """Run harness tasks on a model: ``harness/<task>/<metric>``.

    Raises ``JobError`` for unknown tasks, and where the data set of one cannot be loaded.
    """
    options = task.spec.evaluation
    adapter = Adapter(model, task.tokenizer_of(model), options.batch_size, options.max_new)
    local = [name for name in names if name in DESCRIPTIONS]
    called = {name: f"kdbench_{name}" if name in local else name for name in names}
    level = logging.getLogger("lm_eval").level
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        # the harness draws a progress bar per task that cannot be turned off
        with tempfile.TemporaryDirectory() as scratch, redirect_stderr(io.StringIO()):
            write_tasks(task, local, Path(scratch))
            manager = manager_of(task, list(called.values()), Path(scratch))
            try:
                found = simple_evaluate(
                    model=adapter,
                    tasks=list(called.values()),
                    task_manager=manager,
                    num_fewshot=options.harness_shots,
                    limit=None if len(local) == len(names) else options.harness_items,
                    bootstrap_iters=0,
                    log_samples=False,
                )
            except (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
                raise JobError(f"lm-evaluation-harness cannot load the data of {', '.join(names)}: {error}") from error
    finally:
        logging.getLogger("lm_eval").setLevel(level)
    values = {}
    for name, known in called.items():
        for metric, value in found["results"][known].items():
            label = metric.partition(",")[0]
            if not isinstance(value, int | float) or label.endswith("_stderr") or label in ("sample_len", "alias"):
                continue
            # one number per metric: of several filters of the harness the first is the strictest
            values.setdefault(f"harness/{name}/{label}", float(value))
    return values

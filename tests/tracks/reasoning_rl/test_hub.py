"""Models and data of the Hugging Face hub, by way of local folders."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.errors import JobError
from kdbench.registry import discover, load_method, method_manager, params_class
from kdbench.tracks.llm.networks import models, tokenizers
from kdbench.tracks.llm.spec import Net
from kdbench.tracks.reasoning_rl.task import ReasoningTask

ROWS = [
    {"question": f"What is {i} and {i + 1}?", "answer": f"{i}+{i + 1}\n#### {2 * i + 1}", "topic": "ab"[i % 2]}
    for i in range(40)
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}\n"


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Teacher, student and another checkpoint, written by ``save_pretrained``, and problems as JSON lines."""
    root = tmp_path_factory.mktemp("hub")
    tokenizer = tokenizers.wrap(tokenizers.characters())
    tokenizer.chat_template = TEMPLATE
    made = {}
    for role, width in (("teacher", 32), ("student", 16), ("other", 32)):
        torch.manual_seed(width)
        made[role] = str(root / role)
        net = Net(layers=1, width=width, heads=2, positions=512)
        models.build(net, tokenizer).save_pretrained(made[role])
        tokenizer.save_pretrained(made[role])
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made | {"data": str(root / "rows.jsonl")}


@pytest.fixture
def make(registry, folders, tmp_path):
    def task(data=None, **student) -> ReasoningTask:
        both = {"dtype": "float32", "gradient_checkpointing": False}
        overrides = {
            "data": {
                "path": folders["data"],
                "config": None,
                "val": 2,
                "test": 3,
                "train": 8,
                "length": 256,
                **(data or {}),
            },
            "teacher": {"name": folders["teacher"], "dtype": "float32"},
            "student": {"name": folders["student"], **both, **student},
            "models": {"teacher_sft": {"kind": "hf", "name": folders["other"]}},
            "evaluation": {"max_new": 6, "acc_samples": 1, "samples": 8},
            "recipe": {"precision": "float32", "batch_size": 1, "accumulate": 2},
            "limits": {"steps": 2},
        }
        spec = registry.task("reasoning_rl/hf-math", "paper", overrides)
        return ReasoningTask(spec, seed=0, method="reasoning_rl/probe", folder=tmp_path)

    return task


def trained(registry, task, slug, **params):
    found = registry.method(slug, "reasoning_rl")
    assert registry.supports(found, task.spec)
    module = load_method(found.path, found.module)
    return method_manager(module, registry).hook.train(task=task, params=params_class(module)(**params))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("base", {}),
        ("grpo", {"group": 2}),
        ("opd", {"group": 2}),
        ("opsd", {"reason_first": True}),
        ("opsd", {"rank": 2}),
        ("kdrl", {"group": 2}),
        ("sft_gold", {"rows": 1}),
        ("g_opd", {"rows": 1}),
    ],
)
def test_methods_run_on_models_from_folders(registry, make, tmp_path, method, params):
    task = make()
    assert task.spec.problems() == []
    student = trained(registry, task, method, **params)
    task.phase = "evaluate"
    scores = task.score(student)
    assert set(scores) == {metric.name for metric in task.spec.all_metrics()}
    task.save(student, tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("adapter*"))
    assert task.load(tmp_path / "saved").config.model_type == "llama"


def test_questions_are_put_as_the_chat_template_says(make):
    task = make()
    problem = task.problems()[0]
    text = task.prompt(problem)
    assert text.startswith("[What is 0 and 1?")
    assert "\\boxed{}" in text
    assert text.endswith(".]")
    told = task.with_reference(problem)
    assert problem.solution in told
    assert problem.solution not in text
    assert task.with_reference(problem, "") == text
    assert "because" in task.with_reasons(problem, "because")
    (ids,) = task.encode([text])
    assert ids.count(task.tokenizer.bos_token_id) == 1


def test_responses_are_judged_by_the_answer_that_they_state(make):
    task = make()
    problem = task.problems()[3]
    assert (problem.answer, problem.solution) == ("7", "3+4\n#### 7")
    verdicts = [task.kind.verify(problem, text) for text in ("so \\boxed{7.0}", "#### 8", "seven")]
    assert [verdict.correct for verdict in verdicts] == [True, False, False]
    assert [verdict.format_ok for verdict in verdicts] == [True, True, False]
    with pytest.raises(JobError, match="no rules"):
        task.prompt(problem, "comma")


def test_domains_and_answers_may_be_columns(make):
    task = make({"source": "topic", "answer": "question"})
    assert {problem.family for problem in task.problems()} == {"a", "b"}
    assert task.problems()[0].answer == "What is 0 and 1?"
    with pytest.raises(JobError, match="no column 'topics'"):
        make({"source": "topics"}).problems()
    with pytest.raises(JobError, match="states no answer"):
        make({"response": "topic"}).problems()


def test_further_checkpoints_are_those_that_the_task_names(make):
    task = make()
    assert task.spec.checkpoint_names() == ("student_sft", "teacher_rl", "teacher_sft")
    other = task.checkpoint("teacher_sft")
    assert not any(p.requires_grad for p in other.parameters())
    with pytest.raises(JobError, match="no checkpoint 'peer_1'"):
        task.checkpoint("peer_1")

"""G-OPD, AMPO and the pitfalls on models and data of the Hugging Face hub, by way of local folders."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.reasoning_rl.blocks.guidance import Guides, comprehension
from kdbench.tracks.reasoning_rl.task import ReasoningTask
from kdbench_methods.reasoning_rl import ampo, g_opd, opd_pitfalls
from tests.tracks.reasoning_rl.test_hub import folders, make, registry

__all__ = ["folders", "make", "registry"]


class Written(Guides):
    """Guides whose solution is the reference."""

    def of(self, problems):
        rows = self.task.encode_responses([problem.solution for problem in problems])
        return [dict.fromkeys(range(4), row) for row in rows]


@pytest.fixture
def peers(make):
    """A task that names four peers."""
    task = make()
    models = {f"peer_{i}": task.spec.models["teacher_sft"] for i in range(1, 5)}
    spec = task.spec.model_copy(update={"models": models})
    return ReasoningTask(spec, seed=0, method="reasoning_rl/ampo", folder=task.folder)


def test_guidance_on_free_text(peers, monkeypatch):
    monkeypatch.setattr(ampo, "Guides", Written)
    student = ampo.train(peers, ampo.AmpoParams(group=2))
    peers.phase = "evaluate"
    found = ampo.evaluate(peers, student)
    assert found["replaced_early"] == 1.0
    assert found["guide_1"] + found["guide_2"] + found["guide_3"] + found["guide_4"] == pytest.approx(1.0)
    assert 0.1 <= found["comprehension/chosen"] <= 1.0
    assert "styles" not in found


def test_the_answer_of_free_text_is_found_behind_its_mark(make):
    task = make()
    problem = task.problems()[3]
    model = task.student().eval()
    (value,) = comprehension(task, model, [problem], task.encode_responses([problem.solution])).tolist()
    head = problem.solution[: problem.solution.rindex(problem.answer)]
    assert head.endswith("#### ")
    (ids,) = task.encode([task.prompt(problem)])
    ids = ids + task.encode_responses([head])[0][:-1]
    target = task.encode_responses([problem.answer])[0][:-1]
    with torch.no_grad():
        p = model(input_ids=torch.tensor([ids + target])).logits[0].float().softmax(-1)
    each = [float(p[len(ids) - 1 + t, token]) for t, token in enumerate(target)]
    assert value == pytest.approx(0.9 * sum(each) / len(each) + 0.1, abs=1e-5)


def test_extrapolation_and_its_report(make):
    task = make()
    params = g_opd.GOpdParams(rows=1, base="teacher_sft")
    student = g_opd.train(task, params)
    task.phase = "evaluate"
    found = g_opd.evaluate(task, student, params)
    assert -1 <= found["gain/math"] <= found["acc/math"] <= 1
    assert found["optimum_error"] < 1e-8


def test_cells_and_their_report(make):
    task = make()
    params = opd_pitfalls.OpdPitfallsParams(group=2, teacher="self", privileged="reference")
    student = opd_pitfalls.train(task, params)
    task.phase = "evaluate"
    found = opd_pitfalls.evaluate(task, student, params)
    assert found["mass_identity"] < 1e-6
    assert {"pi_gap", "collapse", "gradient_bias"} <= set(found)

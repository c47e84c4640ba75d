"""AMPO: when groups are guided, by whom, what is understood, and the loss of mixed groups."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.losses.policy_gradient import aggregate
from kdbench.tracks.reasoning_rl.blocks.edits import members, replace_rows
from kdbench.tracks.reasoning_rl.blocks.guidance import (
    Guides,
    before_answer,
    comprehension,
    shaped,
    style_of,
    styles_per_problem,
)
from kdbench.tracks.reasoning_rl.blocks.recipes import advantages, policy_logp
from kdbench.tracks.reasoning_rl.blocks.scoring import token_logits
from kdbench.tracks.reasoning_rl.data.styles import STYLES, solution
from kdbench_methods.reasoning_rl import ampo, grpo


class Known(Guides):
    """Guides whose solutions are the worked ones, each in a style of its own: no network, and all of them right."""

    def of(self, problems):
        texts = [[solution(problem, style) for style in STYLES] for problem in problems]
        return [dict(enumerate(self.task.encode_responses(row))) for row in texts]


@pytest.fixture
def job(make):
    """``job(**params)``: the task, a student, the edit of rollouts and rollouts in which nothing is right."""

    def made(known=True, **params):
        task = make()
        student, chosen = task.student(), ampo.AmpoParams(**params)
        guidance = ampo.Guidance(task, student, chosen)
        if known:
            guidance.guides = Known(task, guidance.guides.teachers)
        rollouts = task.rollouts(student, task.problems()[:3], group=4, generator=torch.Generator().manual_seed(0))
        lucky = rollouts.correct.nonzero()[:, 0].tolist()
        empty = task.encode_responses(["ans"] * len(lucky))
        rollouts = replace_rows(task, student, rollouts, lucky, empty, origin=[-1] * len(lucky))
        assert not rollouts.correct.any()
        return SimpleNamespace(task=task, student=student, guidance=guidance, rollouts=rollouts, params=chosen)

    return made


def right(job, row):
    """The rollouts with one of them the worked solution, as if the student had written it."""
    problem = job.rollouts.problems[row]
    return replace_rows(
        job.task, job.student, job.rollouts, [row], job.task.encode_responses([problem.solution]), origin=[-1]
    )


# --- guidance on demand -----------------------------------------------------------------------------------------------


def test_groups_without_a_right_response_get_the_best_two_in_the_place_of_wrong_ones(job):
    made = job()
    one_right = right(made, 5)
    edited = made.guidance(one_right)
    guided = [int((edited.origin[rows] >= 0).sum()) for rows in members(edited)]
    assert guided == [2, 0, 2]
    for row in (edited.origin >= 0).nonzero()[:, 0].tolist():
        assert not one_right.correct[row]
        assert edited.correct[row]
        assert float(edited.reward[row]) == 1.0
    kept = (edited.origin < 0).nonzero()[:, 0].tolist()
    assert [edited.responses[i] for i in kept] == [one_right.responses[i] for i in kept]
    assert torch.equal(edited.group, one_right.group)
    assert made.guidance.tally.rates == [2 / 3]
    assert sum(made.guidance.tally.chosen) == 4


def test_behaviour_and_masks_are_those_of_what_now_stands_there(job):
    made = job()
    edited = made.guidance(made.rollouts)
    with torch.no_grad():
        assert torch.allclose(policy_logp(made.student, edited), edited.old_logp, atol=1e-6)
    assert edited.targets[edited.sequence == 0].tolist() == edited.responses[0]
    assert int(edited.from_policy.sum()) == int(edited.lengths[edited.origin < 0].sum())


def test_where_every_group_has_a_right_response_nothing_changes(job):
    made = job()
    rollouts = made.rollouts
    for row in (1, 4, 11):
        made.rollouts = rollouts = right(made, row)
    assert made.guidance(rollouts) is rollouts
    assert made.guidance.tally.rates == [0.0]


def test_always_guides_groups_that_have_a_right_response_too(job):
    made = job(trigger="always")
    edited = made.guidance(right(made, 5))
    assert [int((edited.origin[rows] >= 0).sum()) for rows in members(edited)] == [2, 2, 2]
    assert int(edited.origin[5]) == -1  # what was right stays


def test_slots_are_drawn_at_random_among_the_wrong_ones(job):
    made = job()
    places = {tuple((made.guidance(made.rollouts).origin >= 0).nonzero()[:, 0].tolist()) for _ in range(6)}
    assert len(places) > 1


def test_the_most_comprehensible_are_chosen_or_any(job, monkeypatch):
    values = torch.tensor([0.1, 0.9, 0.3, 0.8])
    monkeypatch.setattr(ampo, "comprehension", lambda *rest: values)
    made = job()
    edited = made.guidance(made.rollouts)
    assert set(edited.origin.tolist()) == {-1, 1, 3}
    scores = made.guidance.tally.scores
    assert scores["chosen"][0] / scores["chosen"][1] == pytest.approx(0.85)
    assert scores["rejected"][0] / scores["rejected"][1] == pytest.approx(0.2)
    random = job(choice="random")
    assert {name for _ in range(6) for name in random.guidance(random.rollouts).origin.tolist()} == {-1, 0, 1, 2, 3}


# --- guides -----------------------------------------------------------------------------------------------------------


def test_a_guide_answers_a_problem_once_and_only_right_answers_are_kept(make, monkeypatch):
    task = make()
    problems = task.problems()[:3]
    guides = Guides(task, [task.checkpoint("peer_1"), task.checkpoint("peer_2")], tries=2)
    asked, rollouts = [], type(task).rollouts

    def solved(self, model, wanted, **how):
        """What the first teacher writes is right for the first problem at its second try."""
        asked.append((model is guides.teachers[0], [problem.index for problem in wanted], how["group"]))
        found = rollouts(self, model, wanted, **how)
        if model is not guides.teachers[0] or wanted[0].index:
            return found
        return replace_rows(self, model, found, [1], self.encode_responses([wanted[0].solution]), origin=[-1])

    monkeypatch.setattr(type(task), "rollouts", solved)
    found = guides.of([problems[0], problems[1], problems[0]])
    assert asked == [(True, [0, 1], 2), (False, [0, 1], 2)]
    assert found == [{0: task.encode_responses([problems[0].solution])[0]}, {}, found[0]]
    assert guides.of(problems[:2]) == found[:2]
    assert len(asked) == 2
    again = Guides(task, guides.teachers)
    again.load_state_dict(json.loads(json.dumps(guides.state_dict())))
    assert again.stored == guides.stored


# --- comprehension ----------------------------------------------------------------------------------------------------


def test_comprehension_is_the_mean_probability_of_the_true_answer_behind_the_reasoning(make):
    task = make()
    model = task.student().eval()
    problem = next(p for p in task.problems() if len(p.answer.split()) > 1)
    value = float(comprehension(task, model, [problem], task.encode_responses([problem.solution])))
    head = task.encode([f"{task.prompt(problem)} {before_answer(problem.solution, problem.answer)}"])[0]
    answer = task.encode([problem.answer])[0][1:]
    with torch.no_grad():
        probability = model(input_ids=torch.tensor([head + answer])).logits[0].float().softmax(-1)
    each = [float(probability[len(head) - 1 + t, token]) for t, token in enumerate(answer)]
    assert value == pytest.approx(0.9 * sum(each) / len(each) + 0.1, abs=1e-5)
    assert len(set(each)) > 1  # a mean of probabilities is not the exponential of a mean


def test_what_the_response_itself_gives_as_the_answer_is_replaced_by_the_truth(make):
    task = make()
    model, problem = task.student(), task.problems()[0]
    *steps, _ = problem.solution.split(" ; ")
    texts = [" ; ".join([*steps, f"ans {said}"]) for said in (problem.answer, "9 9 9 9")]
    first, second = comprehension(task, model, [problem] * 2, task.encode_responses(texts)).tolist()
    assert first == pytest.approx(second, abs=1e-6)
    unmarked = comprehension(task, model, [problem], task.encode_responses([" ; ".join(steps)]))
    assert float(unmarked) <= 0.9  # no tenth for the format


@pytest.mark.parametrize("text", ["3 + 4 = 7 ; ans 7", "7 ; ans 7"])
def test_the_last_place_of_the_answer_is_the_answer(text):
    assert before_answer(text, "7") == text[:-1]
    assert before_answer(text, "8") == text


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_shaping_gives_rare_tokens_the_larger_gradient():
    p = torch.tensor([0.001, 0.1, 0.9], dtype=torch.float64)
    logp = p.log().requires_grad_()
    value = shaped(logp)
    assert torch.allclose(value, p / (p + 0.1))
    (slope,) = torch.autograd.grad(value.sum(), logp)  # by log p: 0.1 p / (p + 0.1)^2
    assert torch.allclose(slope, 0.1 * p / (p + 0.1) ** 2)
    assert float(slope[1]) == max(slope.tolist())
    assert slope[0] / p[0] > slope[1] / p[1] > slope[2] / p[2]  # in p itself


def test_the_loss_of_a_guides_tokens_knows_no_behaviour_and_no_clipping(job):
    made = job(entropy=0.0)
    edited = made.guidance(made.rollouts)
    theirs = ~edited.from_policy
    logits = token_logits(made.student, edited.batch).detach()
    before = ampo.terms(logits, edited, made.params, 20)["policy"]
    edited.old_logp = torch.where(theirs, edited.old_logp - 5.0, edited.old_logp)
    assert torch.equal(ampo.terms(logits, edited, made.params, 20)["policy"], before)
    edited.old_logp = torch.where(theirs, edited.old_logp, edited.old_logp - 5.0)
    assert not torch.equal(ampo.terms(logits, edited, made.params, 20)["policy"], before)


def test_the_loss_is_the_sum_over_the_greatest_length(job):
    made = job(entropy=0.0)
    edited = made.guidance(made.rollouts)
    with torch.no_grad():
        logits = token_logits(made.student, edited.batch)
        logp = logits.log_softmax(-1).gather(-1, edited.targets[:, None])[:, 0]
    gain = edited.reward - torch.stack([edited.reward[edited.group == name].mean() for name in edited.group])
    total = 0.0
    for row in range(len(edited)):
        p = logp[edited.sequence == row].exp()
        each = p / (p + 0.1) if int(edited.origin[row]) >= 0 else torch.ones_like(p)  # the ratio is 1
        total -= float(gain[row]) * float(each.sum())
    assert float(ampo.terms(logits, edited, made.params, 20)["policy"]) == pytest.approx(total / 20, rel=1e-4)
    rows = ampo.terms(logits, edited, ampo.AmpoParams(divide="rows"), 20)["policy"]
    assert float(rows) == pytest.approx(total / 20 / len(edited), rel=1e-4)


def test_the_dual_clip_bounds_what_a_bad_response_costs(job):
    made = job(entropy=0.0)
    rollouts = right(made, 0)
    logits = token_logits(made.student, rollouts.batch).detach()
    rollouts.old_logp = rollouts.old_logp - 6.0  # the ratio is exp(6)
    bounded = ampo.terms(logits, rollouts, made.params, 20)["policy"]
    gain = advantages(rollouts, "none")
    expected = torch.where(gain < 0, -10.0 * gain, -1.2 * gain)
    assert torch.allclose(bounded, aggregate(expected, rollouts.sequence, "const", rows=1, length=20), rtol=1e-5)


def test_the_bonus_is_for_entropy(job):
    made = job(entropy=0.01)
    logits = torch.zeros_like(token_logits(made.student, made.rollouts.batch))
    bonus = ampo.terms(logits, made.rollouts, made.params, 20)["entropy"]
    assert float(bonus) == pytest.approx(-0.01 * torch.tensor(logits.shape[-1]).log().item(), rel=1e-5)


# --- against GRPO -----------------------------------------------------------------------------------------------------


def trained(make, module, params):
    task = make()
    task.prepare()
    student = module.train(task, params)
    return torch.cat([weight.detach().flatten() for weight in student.parameters()])


def test_without_guidance_an_update_is_that_of_grpo_to_the_last_bit(make):
    plain = grpo.GrpoParams(scale="none", aggregation="const")
    alike = {"dual": 1000.0, "entropy": 0.0, "divide": "rows"}
    theirs = trained(make, grpo, plain)
    assert torch.equal(trained(make, ampo, ampo.AmpoParams(replace=0, **alike)), theirs)
    assert torch.equal(trained(make, ampo, ampo.AmpoParams(replace=0, **alike | {"dual": 10.0})), theirs)


def test_guidance_changes_the_update(make, monkeypatch):
    monkeypatch.setattr(ampo, "Guides", Known)
    alike = {"entropy": 0.0, "divide": "rows"}
    guided = trained(make, ampo, ampo.AmpoParams(**alike))
    assert not torch.equal(guided, trained(make, ampo, ampo.AmpoParams(replace=0, **alike)))


# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_styles_are_told_apart(make, style):
    for problem in make().problems()[:6]:
        assert style_of(problem, solution(problem, style)) == style
        assert style_of(problem, "ans 3") is None


def test_styles_are_counted_over_right_responses_of_a_problem(make):
    task = make()
    problems = task.problems()[:2]
    texts = [solution(problems[0], "terse"), solution(problems[0], "check"), solution(problems[0], "terse")]
    texts += [solution(problems[1], "reverse"), "ans 3", "think"]
    asked = [problems[0]] * 3 + [problems[1]] * 3
    made = task.judged(asked, task.encode([task.prompt(p) for p in asked]), task.encode_responses(texts))
    made.group = torch.tensor([0, 0, 0, 1, 1, 1])
    assert styles_per_problem(made, texts) == 1.5


def test_history_compares_the_first_quarter_with_the_last():
    rates, scores = [0.8, 0.6, 0.5, 0.5, 0.5, 0.5, 0.3, 0.1], {"chosen": [2.0, 4], "rejected": [0, 0]}
    found = ampo.history({"rates": rates, "chosen": [3, 1], "scores": scores})
    assert found["replacement_fall"] == pytest.approx(0.5)
    assert (found["guide_1"], found["guide_2"], found["comprehension/chosen"]) == (0.75, 0.25, 0.5)
    assert "comprehension/rejected" not in found


def test_a_job_reports_its_guidance(run, monkeypatch):
    result = run("reasoning_rl/ampo", "mixed", tries=1)
    assert {"pass_2", "replacement_fall", "styles"} <= set(result.outcome.extra)
    assert result.outcome.cost["teacher_tokens"] > 0
    assert result.column("replaced")
    run("reasoning_rl/ampo", "mixed", guides="teacher", trigger="always", minibatches=2, tries=1)


@pytest.mark.parametrize("source", ["gold", "teacher", "peers"])
def test_fine_tuning_then_grpo(run, source):
    result = run("reasoning_rl/sft_grpo", "mixed", source=source, problems=8)
    assert result.outcome.cost["steps"] == 3
    assert result.column("sft/loss")
    assert result.column("reward")

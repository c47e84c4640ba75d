"""Rollouts: that tokens align under any prompt, what they are judged by, and how groups are edited."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.reasoning_rl.blocks.edits import members, random_slots, replace_rows, unsolved
from kdbench.tracks.reasoning_rl.blocks.recipes import advantages, grpo_terms, policy_logp
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, frozen_logits, mean_logp, pass_rate, token_logits
from kdbench.tracks.reasoning_rl.data.verify import reward, verify


@pytest.fixture
def sampled(make):
    task = make()
    model = task.student()
    made = task.rollouts(model, task.problems()[:3], group=4, generator=torch.Generator().manual_seed(0))
    return task, model, made


def test_flat_tokens_are_the_responses_in_order(sampled):
    task, _, made = sampled
    for row, response in enumerate(made.responses):
        assert made.targets[made.sequence == row].tolist() == response
        assert response.count(task.tokenizer.eos_token_id) == (not made.truncated[row])
        assert len(response) <= task.max_new
    assert made.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert made.lengths.tolist() == [len(row) for row in made.responses]


def test_logits_predict_the_next_token_of_each_response(sampled):
    _task, model, made = sampled
    with torch.no_grad():
        flat = chosen(token_logits(model, made.batch), made.targets)
        for row in (0, 5, 11):
            ids = torch.tensor([made.prompts[row] + made.responses[row]])
            logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
            start = len(made.prompts[row])
            alone = [float(logp[start + t - 1, token]) for t, token in enumerate(made.responses[row])]
            assert flat[made.sequence == row].tolist() == pytest.approx(alone, abs=1e-4)


def test_the_behaviour_is_that_of_the_training_forward(sampled):
    _, model, made = sampled
    with torch.no_grad():
        assert torch.allclose(policy_logp(model, made), made.old_logp, atol=1e-6)


def test_the_same_responses_behind_other_prompts_have_the_same_tokens(sampled):
    task, model, made = sampled
    told = task.encode([task.with_reference(problem) for problem in made.problems])
    behind = made.context(told, task.pad)
    assert behind.input_ids.shape[1] > made.batch.input_ids.shape[1]
    rows = behind.scored.nonzero()[:, 0]
    assert torch.equal(rows, made.sequence)
    logits = frozen_logits(task, model, behind)
    assert logits.shape == token_logits(model, made.batch).shape
    row = 3
    ids = torch.tensor([told[row] + made.responses[row]])
    with torch.no_grad():
        alone = model(input_ids=ids).logits[0, len(told[row]) - 1 : -1].float()
    assert torch.allclose(logits[rows == row], alone, atol=1e-4)
    same = made.context(made.prompts, task.pad)
    assert torch.equal(frozen_logits(task, model, same), frozen_logits(task, model, made.batch))


def test_a_response_without_an_end_has_no_reward_and_keeps_its_tokens(make):
    task = make(reward="binary")
    problem = task.problems()[0]
    (prompt,), (right,) = task.encode([task.prompt(problem)]), task.encode_responses([problem.solution])
    made = task.judged([problem, problem], [prompt, prompt], [right, right[:-1]])
    assert made.reward.tolist() == [1.0, 0.0]
    assert made.truncated.tolist() == [False, True]
    assert made.correct.tolist() == [True, False]
    assert made.lengths.tolist() == [len(right), len(right) - 1]
    assert task.budget.spent["reward_calls"] == 2


def test_rewards_do_not_read_the_prompt(make):
    task = make(reward="binary")
    problem = task.problems()[0]
    prompt = task.encode([f"{problem.solution} {task.prompt(problem)}"])
    assert task.judged([problem], prompt, task.encode_responses(["ok"])).reward.tolist() == [0.0]


def test_kinds_of_reward():
    from kdbench.tracks.reasoning_rl.data.problems import Problem

    problem = Problem("rules", 2, "rules first b ; has c", ("first b", "has c"), "b c d", "key")
    half = verify(problem, "ans b d")
    assert [reward(half, False, kind) for kind in ("binary", "binary+format", "rubric")] == [0.0, 0.1, 0.5]
    assert reward(half, True, "rubric") == 0.0
    whole = verify(problem, "ans b c")
    assert [reward(whole, False, kind) for kind in ("binary", "binary+format", "rubric")] == [1.0, 1.0, 1.0]


def test_rows_of_rollouts_keep_their_tokens(sampled):
    _, _, made = sampled
    part = made.rows(torch.tensor([1, 6, 7]))
    assert part.responses == [made.responses[i] for i in (1, 6, 7)]
    assert part.group.tolist() == [0, 1, 1]
    assert torch.equal(part.targets, torch.cat([made.targets[made.sequence == i] for i in (1, 6, 7)]))
    assert torch.equal(part.old_logp, torch.cat([made.old_logp[made.sequence == i] for i in (1, 6, 7)]))
    assert len(part.old_logp) == len(part.sequence)


def test_replaced_members_are_judged_and_scored_again(sampled):
    task, model, made = sampled
    gold = task.encode_responses([made.problems[i].solution for i in (2, 9)])
    edited = replace_rows(task, model, made, [2, 9], gold, origin=[0, 3], reward="binary")
    assert edited.origin.tolist() == [-1, -1, 0, -1, -1, -1, -1, -1, -1, 3, -1, -1]
    assert edited.correct[2]
    assert edited.correct[9]
    assert edited.reward[2] == 1
    assert torch.equal(edited.group, made.group)
    with torch.no_grad():
        assert torch.allclose(edited.old_logp, policy_logp(model, edited), atol=1e-6)
    assert int((~edited.from_policy).sum()) == sum(map(len, gold))
    assert edited.responses[0] == made.responses[0]
    assert replace_rows(task, model, made, [], [], origin=[]) is made


def test_groups_without_a_right_response_are_found(sampled):
    task, model, made = sampled
    assert [rows.tolist() for rows in members(made)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    gold = task.encode_responses([problem.solution for problem in made.problems])
    wrong = task.encode_responses(["ans ok"])[0]
    edited = replace_rows(task, model, made, range(12), [wrong] * 4 + gold[4:8] + [wrong] * 4, origin=[-1] * 12)
    assert [rows.tolist() for rows in unsolved(edited)] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    slots = random_slots(torch.arange(8, 12), 2, torch.Generator().manual_seed(0))
    assert len(set(slots)) == 2
    assert set(slots) <= set(range(8, 12))


def test_where_all_rewards_are_equal_there_is_no_gradient(sampled):
    _, model, made = sampled
    made.reward = torch.full_like(made.reward, 0.3)
    loss = grpo_terms(made, policy_logp(model, made))
    loss.backward()
    assert loss.item() == 0
    assert all(float(p.grad.abs().max()) == 0 for p in model.parameters() if p.grad is not None)


def test_on_policy_the_gradient_is_that_of_the_advantage_weighted_likelihood(sampled):
    _, model, made = sampled
    made.reward = torch.arange(12.0)
    parameters = list(model.parameters())
    first = torch.autograd.grad(grpo_terms(made, policy_logp(model, made)), parameters)
    second = torch.autograd.grad(-(advantages(made) * policy_logp(model, made)).mean(), parameters)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))


def test_mean_log_probability_is_over_each_response():
    logp, sequence = torch.tensor([-1.0, -3.0, -5.0]), torch.tensor([0, 0, 2])
    assert mean_logp(logp, sequence, 3).tolist() == [-2.0, 0.0, -5.0]


def test_pass_rates_are_shares_of_samples(make):
    task = make()
    found = pass_rate(task, task.teacher(), task.problems()[:4], 5, torch.Generator().manual_seed(0))
    assert found.shape == (4,)
    assert set((found * 5).round(6)) <= set(range(6))


def test_a_round_is_given_out_in_whole_groups_and_goes_on_where_it_was(make):
    task = make()
    loader = task.on_policy(task.student(), group=2, minibatches=2)
    first, second = next(loader), next(loader)
    assert len(first) == len(second) == 4
    assert loader.rounds == 1
    assert not set(first.group.tolist()) & set(second.group.tolist())
    third = next(loader)
    state, rest = loader.state_dict(), next(loader)
    assert loader.rounds == 2
    assert len(third) == 4
    other = task.on_policy(task.student(), group=2, minibatches=2)
    other.load_state_dict(state)
    again = next(other)
    assert again.responses == rest.responses
    for name in ("reward", "group", "origin", "old_logp", "targets"):
        assert torch.equal(getattr(again, name), getattr(rest, name))


def test_an_edit_sees_every_round(make):
    task, seen = make(), []

    def edit(rollouts):
        seen.append(len(rollouts))
        return rollouts

    loader = task.on_policy(task.student(), group=3, prompts=2, edit=edit)
    assert len(next(loader)) == 6
    assert seen == [6]


def test_what_is_sampled_is_metered_by_who_samples(make):
    task = make()
    problems, generator = task.problems()[:2], torch.Generator().manual_seed(0)
    made = task.rollouts(task.student(), problems, generator=generator)
    assert task.budget.spent["generated_tokens"] == int(made.lengths.sum())
    told = task.rollouts(task.teacher(), problems, generator=generator)
    assert task.budget.spent["teacher_tokens"] == int(told.lengths.sum())
    assert task.budget.spent["teacher_queries"] == 2
    frozen_logits(task, task.teacher(), made.batch)
    assert task.budget.spent["teacher_queries"] == 4
    assert task.budget.spent["teacher_tokens"] == int(told.lengths.sum() + made.lengths.sum())
    before = dict(task.budget.spent)
    task.rollouts(task.student(), problems, generator=generator, metered=False)
    assert dict(task.budget.spent) == before

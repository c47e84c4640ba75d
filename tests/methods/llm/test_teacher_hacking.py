"""Teacher hacking: fixed against fresh responses, the imperfect teacher, proxy and golden distances, their curves."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.llm.blocks.completions import Passes
from kdbench.tracks.llm.data.encoding import pack
from kdbench.training.curves import power_law, rise_while_falling, setback, turning_point

OPTIONS = {"teacher_layers": 1, "teacher_width": 16, "max_new": 4, "watched": 4, "prompts": 6, "points": 3}


# --- data -------------------------------------------------------------------------------------------------------------


def passes(fresh, completions=1, count=5, slots=None):
    """Passes over prompts 10, 11, ..., to which the writer answers with one random token."""
    generator = torch.Generator().manual_seed(1)

    def write(rows):
        answers = torch.randint(1000, (len(rows),), generator=generator).tolist()
        return pack([[row, answer] for row, answer in zip(rows.tolist(), answers, strict=True)], [1] * len(rows), 0)

    order = torch.Generator().manual_seed(2)
    rows = torch.arange(10, 10 + count)
    return Passes(rows, 2, write, order, fresh=fresh, completions=completions, slots=slots)


def read(data, epochs):
    return [[tuple(row) for batch in data for row in batch.input_ids.tolist()] for _ in range(epochs)]


def test_as_many_fixed_responses_as_passes_are_the_batches_of_fresh_ones():
    assert read(passes("never", completions=3), 3) == read(passes("pass"), 3)
    assert read(passes("never", completions=2), 3) != read(passes("pass"), 3)


def test_only_the_responses_differ_between_the_arms():
    arms = [read(passes(*arm), 3) for arm in (("never",), ("never", 2), ("pass",), ("batch",))]
    prompts = [[[row[0] for row in epoch] for epoch in arm] for arm in arms]
    assert prompts[0] == prompts[1] == prompts[2] == prompts[3]
    assert all(sorted(epoch) == [10, 11, 12, 13, 14] for epoch in prompts[0])


def test_one_fixed_response_stays_and_several_take_turns():
    one, two = read(passes("never"), 2), read(passes("never", completions=2), 4)
    assert set(one[0]) == set(one[1])
    assert set(two[0]) == set(two[2]) != set(two[1])
    assert set(two[1]) == set(two[3])
    fresh = read(passes("batch"), 2)
    assert set(fresh[0]) != set(fresh[1])


def test_fewer_prompts_are_repeated_with_their_responses_to_a_pass_of_the_same_length():
    epoch = read(passes("never", count=2, slots=6), 1)[0]
    assert len(epoch) == 6
    assert len(set(epoch)) == 2
    assert sorted(row[0] for row in epoch) == [10, 10, 10, 11, 11, 11]


# --- curves -----------------------------------------------------------------------------------------------------------


def test_the_turning_point_and_what_was_lost_after_it():
    assert turning_point([3.0, 1.0, 1.0, 2.0]) == 2
    assert turning_point([3.0, 2.0, 1.0]) == 2
    assert setback([3.0, 1.0, 2.5]) == 1.5
    assert setback([3.0, 2.0, 1.0]) == 0


def test_it_is_hacking_only_while_the_proxy_falls():
    golden = [3.0, 1.0, 2.0]
    assert rise_while_falling(golden, [3.0, 2.0, 1.0]) == 1.0
    assert rise_while_falling(golden, [3.0, 2.0, 2.5]) == 0  # both rise: plain overfitting
    assert rise_while_falling([3.0, 2.0, 1.0], [3.0, 2.0, 1.0]) == 0


def test_a_power_law_is_found_and_leaving_it_is_seen():
    steps = [1, 2, 4, 8, 16, 32]
    exact = power_law(steps, [3 * s**-0.5 for s in steps])
    assert exact == pytest.approx({"exponent": 0.5, "r2": 1.0, "deviation": 0.0}, abs=1e-9)
    stuck = power_law(steps, [3 * min(s, 4) ** -0.5 for s in steps])
    assert stuck["exponent"] == pytest.approx(0.5)
    assert stuck["deviation"] > 0.5
    with pytest.raises(ValueError, match="three points"):
        power_law([1, 2], [1.0, 0.5])


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_arms_spend_the_same_steps_and_watch_the_same_start(run):
    offline, student, teacher = (
        run("teacher_hacking", "instruct", data=data, **OPTIONS)
        for data in ("offline_teacher", "online_student", "online_teacher")
    )
    costs = [result.outcome.cost for result in (offline, student, teacher)]
    assert {(cost["steps"], cost["aux_steps"]) for cost in costs} == {(4, 20)}
    for name in ("proxy_fkl", "golden_fkl", "proxy_rkl", "golden_rkl"):
        assert offline.column(name)[0] == student.column(name)[0] == teacher.column(name)[0] > 0
    assert offline.outcome.extra["hacking_gap"] >= 0


def test_the_share_of_the_first_stage_leaves_the_rest_to_distillation(run):
    result = run("teacher_hacking", "text", loss="ce", data="offline_oracle", sft_share=0.5, **OPTIONS)
    assert result.outcome.cost["steps"] == 4
    assert result.outcome.extra["epochs"] == pytest.approx(2 / 2)


def test_the_teacher_has_four_heads(run):
    with pytest.raises(AssertionError, match="teacher_width: 18 is not a multiple"):
        run("teacher_hacking", "instruct", **{**OPTIONS, "teacher_width": 18})


@pytest.mark.parametrize("data", ["online_teacher", "online_student"])
def test_what_was_interrupted_ends_as_if_it_had_not_been(interrupted, data):
    params = {**OPTIONS, "data": data, "sft_share": 0.0}
    interrupted("teacher_hacking", "instruct", 5, {"limits": {"steps": 8}}, **params)

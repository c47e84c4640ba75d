"""The loop that writes: what is committed when, what is counted, where it stops, caches, budgets."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import JobError
from kdbench.tracks.dllm.blocks.oracle import oracle_decode
from kdbench.tracks.dllm.decoding import State, decode, joined, predictions
from kdbench.tracks.dllm.networks.base import canvas_logits, carry_over
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.basic import All, Factor, Threshold, TopK
from tests.tracks.dllm.conftest import EOS, MASK, VOCABULARY, predictor, some_prompts

OPTIONS = {"length": 8, "block": 4}


def by_hand(net, prompts, row, length, block):
    """One token per step, with a plain forward each: tokens and the order of their positions."""
    canvas, order = torch.full((1, length), MASK), []
    for start in range(0, length, block):
        for _ in range(block):
            probs = canvas_logits(net, prompts[row : row + 1], canvas)[0].softmax(-1)
            sure, token = probs.max(-1)
            open_ = [place for place in range(start, start + block) if canvas[0, place] == MASK]
            place = max(open_, key=lambda place: (sure[place].item(), -place))
            canvas[0, place] = token[place]
            order.append(place)
    return canvas[0], order


def test_one_token_per_step_by_hand(net, prompts):
    written = decode(net, prompts, TopK(1), **OPTIONS)
    for row in range(len(prompts)):
        tokens, order = by_hand(net, prompts, row, 8, 4)
        assert written.tokens[row].tolist() == tokens.tolist()
        assert written.steps[row].argsort().tolist() == order
    assert written.forwards.tolist() == [8] * len(prompts)
    assert written.forwarded.tolist() == (8 * (8 + prompts.present.sum(1))).tolist()
    assert not (written.tokens == MASK).any()


def test_a_row_does_not_depend_on_the_others(net, prompts):
    together = decode(net, prompts, Threshold(0.6), **OPTIONS)
    alone = joined([decode(net, prompts[row : row + 1], Threshold(0.6), **OPTIONS) for row in range(len(prompts))])
    assert torch.equal(together.tokens, alone.tokens)
    assert torch.equal(together.steps, alone.steps)
    assert torch.equal(together.forwards, alone.forwards)


def test_padding_of_a_prompt_says_nothing(net, prompts):
    other = type(prompts)(prompts.ids.masked_fill(~prompts.present, 7), prompts.present)
    canvas = torch.full((len(prompts), 8), MASK)
    assert torch.equal(canvas_logits(net, prompts, canvas), canvas_logits(net, other, canvas))


def test_the_network_reads_in_both_directions_and_a_causal_one_does_not(prompts):
    canvas = torch.full((len(prompts), 8), MASK)
    later = canvas.clone()
    later[:, -1] = 5
    both, causal = predictor(), predictor(causal=True)
    assert not torch.equal(canvas_logits(both, prompts, canvas)[:, 0], canvas_logits(both, prompts, later)[:, 0])
    assert torch.equal(canvas_logits(causal, prompts, canvas)[:, :-1], canvas_logits(causal, prompts, later)[:, :-1])


def test_the_mask_is_never_predicted(net, prompts):
    logits = canvas_logits(net, prompts, torch.full((len(prompts), 8), MASK))
    assert (logits[..., MASK] == -torch.inf).all()
    assert logits[..., [0, 2, 3]].isfinite().all()


def test_confidence_is_of_logits_without_noise():
    logits = torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    x0, conf, probs = predictions(logits, 1.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(conf, logits.softmax(-1).gather(-1, x0[..., None]).squeeze(-1))
    assert not torch.equal(x0, logits.argmax(-1))
    assert torch.equal(probs, logits.softmax(-1))
    with pytest.raises(ValueError, match="sampling needs a generator"):
        predictions(logits, 1.0)


def test_sampled_tokens_have_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(1, 20000, 3)
    x0 = predictions(logits, 0.5, torch.Generator().manual_seed(0))[0]
    wanted = (logits[0, 0] / 0.5).softmax(-1)
    found = torch.bincount(x0.flatten(), minlength=3) / 20000
    assert (found - wanted).abs().max() < 4 * (0.25 / 20000) ** 0.5


def test_blocks_are_written_from_left_to_right(net, prompts):
    written = decode(net, prompts, Threshold(0.5), **OPTIONS)
    assert (written.steps[:, :4].amax(1) < written.steps[:, 4:].amin(1)).all()
    assert written.forwards.tolist() == (written.steps.amax(1) + 1).tolist()
    one = decode(net, prompts, All(), **OPTIONS)
    assert one.forwards.tolist() == [2] * len(prompts)


def test_every_step_is_seen(net, prompts):
    seen = []
    decode(net, prompts, Factor(1.0), observe=lambda view, commit: seen.append((view, commit)), **OPTIONS)
    for view, commit in seen:
        assert (view.conf[~view.candidates] == -torch.inf).all()
        assert not (commit & ~view.candidates).any()
        assert torch.equal(view.candidates, (view.canvas == MASK) & view.candidates)
    assert seen[0][0].step.tolist() == [0] * len(prompts)
    assert all((view.block_step <= view.step).all() for view, _ in seen)


class Lazy(DecodingPolicy):
    def commit(self, view):
        return view.candidates & False


class Greedy(DecodingPolicy):
    def commit(self, view):
        return view.candidates | True


@pytest.mark.parametrize("policy", [Lazy(), Greedy()])
def test_a_policy_that_breaks_its_promise_is_refused(net, prompts, policy):
    with pytest.raises(JobError, match="must commit masked positions of the block, at least one a row"):
        decode(net, prompts, policy, **OPTIONS)


def test_what_is_written_is_never_written_again(net, prompts):
    state = State(net, prompts, **OPTIONS)
    rows = state.alive()
    chosen = state.candidates(rows)
    state.logits(rows)
    state.commit(rows, chosen, torch.full((len(rows), 8), 5), torch.ones(len(rows), 8))
    with pytest.raises(AssertionError, match="not masked"):
        state.commit(rows, chosen, torch.full((len(rows), 8), 6), torch.ones(len(rows), 8))


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 3, 5, 8])
def test_a_budget_is_kept(net, prompts, budget):
    written = decode(net, prompts, TopK(1), budget=budget, **OPTIONS)
    assert written.forwards.amax() <= budget
    assert not (written.tokens == MASK).any()
    free = decode(net, prompts, TopK(1), **OPTIONS)
    assert torch.equal(written.tokens, free.tokens) or budget < 8


def test_a_budget_needs_a_forward_for_each_block(net, prompts):
    with pytest.raises(ValueError, match="less than one for each of 2 blocks"):
        decode(net, prompts, TopK(1), budget=1, **OPTIONS)


# --- where it ends ----------------------------------------------------------------------------------------------------


def ending(seed=3):
    net = predictor(seed)
    with torch.no_grad():
        net.head.bias[EOS] += 12.0
    return net


@pytest.mark.parametrize("policy", [TopK(1), Threshold(0.5)])
def test_stopping_at_an_end_changes_nothing_before_it(prompts, policy):
    net = ending()
    whole, ended = decode(net, prompts, policy, **OPTIONS), decode(net, prompts, policy, stop="eos", **OPTIONS)
    lengths = whole.lengths(EOS)
    assert (lengths < 8).any()
    before = torch.arange(8) < lengths[:, None]
    assert torch.equal(torch.where(before, whole.tokens, EOS), ended.tokens)
    assert (ended.forwards <= whole.forwards).all()
    assert ended.forwards.sum() < whole.forwards.sum()


def test_a_truncated_canvas_costs_fewer_tokens(prompts):
    net = ending()
    ended = decode(net, prompts, TopK(1), stop="eos", **OPTIONS)
    cut = decode(net, prompts, TopK(1), stop="truncate", **OPTIONS)
    assert (cut.forwarded / cut.forwards).sum() < (ended.forwarded / ended.forwards).sum()
    assert not (cut.tokens == MASK).any()
    behind = torch.arange(8) >= cut.lengths(EOS)[:, None]
    assert (cut.tokens[behind] == EOS).all()


# --- caches -----------------------------------------------------------------------------------------------------------


def test_a_cache_of_the_same_text_says_the_same(net, prompts):
    canvas = torch.randint(2, VOCABULARY, (len(prompts), 8), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([prompts.ids, canvas], 1)
    there = torch.cat([prompts.present, torch.ones_like(canvas, dtype=torch.bool)], 1)
    logits, memory = net.remember(ids, there)
    torch.testing.assert_close(logits, net(ids, there))
    places = torch.arange(7, 11).expand(len(prompts), -1)
    torch.testing.assert_close(net.recall(memory, ids.gather(1, places), places), logits[:, 7:11])


def test_a_cache_saves_forwarded_tokens(net):
    """One forward a block is read whole; later ones read the block alone."""
    prompts = some_prompts(4)
    first = decode(net, prompts, All(), length=8, block=8, cached=True)
    plain = decode(net, prompts, All(), length=8, block=8)
    assert torch.equal(first.tokens, plain.tokens)
    cached = decode(net, prompts, TopK(1), length=8, block=4, cached=True)
    counted = 2 * (prompts.present.sum(1) + 8) + 6 * 4
    assert cached.forwarded.tolist() == counted.tolist()
    assert cached.forwards.tolist() == [8] * 4


def test_a_model_without_a_cache_is_refused(net, prompts):
    net.cacheable = False
    with pytest.raises(JobError, match="keeps no keys and values"):
        decode(net, prompts, TopK(1), cached=True, **OPTIONS)


# --- the oracle -------------------------------------------------------------------------------------------------------


def test_the_oracle_writes_the_reference_with_no_more_forwards(net, prompts):
    reference = decode(net, prompts, TopK(1), **OPTIONS)
    found, rows = oracle_decode(net, prompts, reference.tokens, log=True, **OPTIONS)
    assert torch.equal(found.tokens, reference.tokens)
    assert (found.forwards <= reference.forwards).all()
    assert found.forwards.sum() < reference.forwards.sum()
    assert len(rows.confidence) == found.forwards.sum()
    assert rows.confidence.shape == rows.correct.shape == (len(rows.prompt), 4)
    # all that is right of what is masked is committed: so many positions, with those that were copied
    assert int((rows.correct & rows.masked).sum() + found.extra["copied"].sum()) == reference.tokens.numel()


def test_the_oracle_of_a_text_it_never_says_copies_it(net, prompts):
    never = torch.full((len(prompts), 8), MASK - MASK + 2)
    found, _ = oracle_decode(net, prompts, never, **OPTIONS)
    assert torch.equal(found.tokens, never)
    assert found.extra["copied"].sum() > 0


def test_carry_over_is_certain_of_what_is_visible(net, prompts):
    canvas = torch.full((len(prompts), 8), MASK)
    canvas[:, 2] = 4
    probs = carry_over(canvas_logits(net, prompts, canvas), canvas, MASK).softmax(-1)
    assert (probs[:, 2, 4] == 1).all()
    assert (probs[:, 3].amax(-1) < 1).all()

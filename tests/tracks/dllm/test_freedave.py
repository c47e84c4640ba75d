"""Drafts and their verification: the text of one token per step, with fewer forwards."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.dllm.decoders.freedave import Drafting, FreeDave, chain, draft_and_verify
from kdbench.tracks.dllm.decoding import decode
from kdbench.tracks.dllm.policies.basic import Threshold, TopK
from tests.tracks.dllm.conftest import EOS, MASK, predictor, some_prompts

OPTIONS = {"length": 12, "block": 6}


@pytest.fixture(scope="module")
def nets():
    return [predictor(seed, length=12, sharp=sharp) for seed, sharp in ((0, 2.0), (1, 6.0), (2, 20.0))]


@pytest.fixture(scope="module")
def questions():
    return some_prompts(24)


@pytest.mark.parametrize("drafts", [1, 2, 4, 8])
@pytest.mark.parametrize("eager", [False, True])
def test_the_text_is_that_of_one_token_per_step(nets, questions, drafts, eager):
    for net in nets:
        static = decode(net, questions, TopK(1), **OPTIONS)
        written = draft_and_verify(net, questions, Drafting(drafts, eager=eager), **OPTIONS)
        assert torch.equal(written.tokens, static.tokens)
        assert (written.forwards <= static.forwards).all()
        if drafts == 1:
            assert torch.equal(written.forwards, static.forwards)


def test_more_drafts_take_no_more_forwards(nets, questions):
    for net in nets:
        counts = [
            int(draft_and_verify(net, questions, Drafting(drafts), **OPTIONS).forwards.sum())
            for drafts in (1, 2, 3, 4, 6)
        ]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < counts[0]


def test_with_a_cache_the_text_is_that_of_static_decoding_with_a_cache(nets, questions):
    for net in nets:
        static = decode(net, questions, TopK(1), cached=True, **OPTIONS)
        batch = draft_and_verify(net, questions, Drafting(4), cached=True, **OPTIONS)
        tree = draft_and_verify(net, questions, Drafting(4, tree=True), cached=True, **OPTIONS)
        assert torch.equal(batch.tokens, static.tokens)
        assert torch.equal(tree.tokens, static.tokens)
        assert torch.equal(tree.forwards, batch.forwards)
        assert batch.forwards.sum() < static.forwards.sum()
        assert tree.sequences.sum() < batch.sequences.sum()


def test_drafts_in_one_sequence_see_what_each_alone_sees(nets, questions):
    net = nets[1]
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(2, 12, (len(questions), 12), generator=generator)
    ids = torch.cat([questions.ids, canvas], 1)
    there = torch.cat([questions.present, torch.ones_like(canvas, dtype=torch.bool)], 1)
    memory = net.remember(ids, there)[1]
    places = torch.arange(8, 14).expand(len(questions), -1)
    drafts = torch.randint(1, 12, (len(questions), 3, 6), generator=generator)
    tree = net.recall_tree(memory, drafts, places)
    for number in range(3):
        torch.testing.assert_close(tree[:, number], net.recall(memory, drafts[:, number], places))


def test_an_end_stops_it_where_it_stops_static_decoding(questions):
    net = predictor(3, length=12)
    with torch.no_grad():
        net.head.bias[EOS] += 12.0
    static = decode(net, questions, TopK(1), stop="eos", **OPTIONS)
    written = draft_and_verify(net, questions, Drafting(4), stop="eos", **OPTIONS)
    assert torch.equal(written.tokens, static.tokens)
    assert (static.lengths(EOS) < 12).any()


def test_draft_one_with_a_threshold_reaches_further(nets, questions):
    net = nets[1]
    parallel = decode(net, questions, Threshold(0.6), **OPTIONS)
    alone = draft_and_verify(net, questions, Drafting(1, threshold=0.6), **OPTIONS)
    assert torch.equal(alone.tokens, parallel.tokens)
    assert torch.equal(alone.forwards, parallel.forwards)
    more = draft_and_verify(net, questions, Drafting(4, threshold=0.6), **OPTIONS)
    assert more.forwards.sum() < parallel.forwards.sum()


def test_a_draft_that_the_successor_does_not_contain_is_refused():
    """Three drafts; the successor of the first has another token where the second has one: nothing more is taken."""
    drafts = torch.tensor([[[5, 1, 1], [5, 6, 1], [5, 6, 7]]])
    exists, read = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    right = torch.tensor([[[5, 6, 1], [5, 6, 7], [0, 0, 0]]])
    assert chain(drafts, right, exists, read, MASK).tolist() == [2]
    wrong = right.clone()
    wrong[0, 0, 1] = 9
    assert chain(drafts, wrong, exists, read, MASK).tolist() == [0]
    elsewhere = torch.tensor([[[5, 1, 7], [5, 6, 7], [0, 0, 0]]])
    assert chain(drafts, elsewhere, exists, read, MASK).tolist() == [0]
    # a successor of several tokens reaches past the next draft: the subset rule
    several = torch.tensor([[[5, 6, 7], [9, 9, 9], [0, 0, 0]]])
    assert chain(drafts, several, exists, read, MASK).tolist() == [2]
    assert chain(drafts, several, exists & torch.tensor([[True, True, False]]), read, MASK).tolist() == [1]


def test_the_sequences_of_all_drafts_are_counted(nets, questions):
    written = draft_and_verify(nets[1], questions, Drafting(4), **OPTIONS)
    assert (written.sequences > written.forwards).all()
    assert (written.sequences <= 4 * written.forwards).all()
    assert torch.equal(written.forwards, written.extra["rounds"] + 1)
    assert written.extra["accepted"].sum() > 0


@pytest.mark.parametrize("budget", [2, 3, 5, 8, 12])
def test_a_budget_is_kept(nets, questions, budget):
    for net in nets:
        written = draft_and_verify(net, questions, Drafting(3), budget=budget, **OPTIONS)
        assert written.forwards.amax() <= budget
        assert not (written.tokens == MASK).any()
    free = draft_and_verify(nets[2], questions, Drafting(3), **OPTIONS)
    assert torch.equal(written.tokens, free.tokens) or budget < 12


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        (Drafting(), {"stop": "truncate"}, "stop must be never or eos"),
        (Drafting(eager=True), {"cached": True}, "no eager drafts"),
        (Drafting(tree=True), {}, "they need a cache"),
    ],
)
def test_what_cannot_be_verified_is_refused(net, prompts, how, options, message):
    with pytest.raises(ValueError, match=message):
        draft_and_verify(net, prompts, how, length=8, block=4, **options)
    with pytest.raises(ValueError, match="temperature must be 0"):
        FreeDave(net, Drafting()).decode(prompts, length=8, block=4, temperature=1.0)

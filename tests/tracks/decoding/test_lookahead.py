"""The look-ahead against enumeration of every continuation (V = 4, T = 5)."""

from __future__ import annotations

import itertools

import pytest
import torch

from kdbench.tracks.decoding.blocks.automata import DEAD, compile_template, everything
from kdbench.tracks.decoding.blocks.hmm import HMM
from kdbench.tracks.decoding.blocks.lookahead import Lookahead, edges_of, smallest_set
from kdbench.tracks.decoding.blocks.templates import Slot, template

LENGTH, TEXTS, END = 5, ["", "a", "b", "ab"], 0


@pytest.fixture
def model() -> HMM:
    return HMM.random(3, 4, torch.Generator().manual_seed(0), torch.float64)


@pytest.fixture
def automaton():
    return compile_template(template(Slot(stop=("ab",)), Slot("n", "b", 1, 2)), TEXTS, END)


def probability(model: HMM, message: torch.Tensor, tokens) -> float:
    """P(tokens) where the next hidden state is distributed as ``message``."""
    total = 1.0
    for token in tokens:
        joint = message * model.emission[:, token]
        total *= float(joint.sum())
        message = (joint / joint.sum()) @ model.transition
    return total


def satisfied(model, automaton, message, state, remaining) -> float:
    """P(the next ``remaining`` tokens lead to an accepting state), summed over all of them."""
    return sum(
        probability(model, message, tokens)
        for tokens in itertools.product(range(4), repeat=remaining)
        if (after := automaton.walk(tokens, state)) != DEAD and bool(automaton.accepting[after])
    )


def test_the_table_is_the_sum_over_all_continuations(model, automaton):
    table = Lookahead(model, automaton, LENGTH).log_table().exp()
    assert table.shape == (automaton.states, LENGTH + 1, 3)
    for state in range(automaton.states):
        for remaining in range(LENGTH + 1):
            for h in range(3):
                one = torch.zeros(3).double()
                one[h] = 1
                want = satisfied(model, automaton, one, state, remaining)
                assert float(table[state, remaining, h]) == pytest.approx(want, rel=1e-9, abs=1e-15)


def test_the_factor_of_a_token_is_the_probability_that_the_format_is_met(model, automaton):
    ahead = Lookahead(model, automaton, LENGTH)
    for prefix in ([], [1], [3, 2], [2, 1, 2]):
        state, message = automaton.walk(prefix), model.initial[None]
        for token in prefix:
            message = ahead.advance(message, torch.tensor([token]))
        remaining = LENGTH - len(prefix)
        log_c, used = ahead.reweigh(message, torch.tensor([state]), torch.tensor([remaining]))
        assert used.tolist() == [3]
        for token in range(4):
            after = automaton.walk([token], state)
            want = 0.0
            if after != DEAD:
                follows = ahead.advance(message, torch.tensor([token]))[0]
                want = satisfied(model, automaton, follows, after, remaining - 1)
            assert float(log_c[0, token].exp()) == pytest.approx(want, rel=1e-9, abs=1e-15)


def test_rows_of_a_batch_do_not_touch_each_other(model, automaton):
    ahead = Lookahead(model, automaton, LENGTH)
    messages = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).double()
    messages /= messages.sum(-1, keepdim=True)
    states, remaining = torch.tensor([0, 1, 2, 0]), torch.tensor([5, 4, 2, 3])
    for eps in (0.0, 0.2):
        together, _ = ahead.reweigh(messages, states, remaining, eps)
        for n in range(4):
            alone, _ = ahead.reweigh(messages[n : n + 1], states[n : n + 1], remaining[n : n + 1], eps)
            assert torch.allclose(together[n], alone[0])


def test_where_all_is_accepted_every_factor_is_one(model):
    ahead = Lookahead(model.float(), everything(4), 20)
    log_c, _ = ahead.reweigh(model.initial[None].expand(2, -1), torch.tensor([0, 0]), torch.tensor([20, 1]))
    assert torch.allclose(log_c, torch.zeros(2, 4), atol=1e-5)


def test_tokens_of_one_destination_are_one_edge(automaton):
    source, destination, edge = edges_of(automaton)
    for state in range(automaton.states):
        for token in range(4):
            number = int(edge[state, token])
            after = int(automaton.delta[state, token])
            assert (number == -1) == (after == DEAD)
            if after != DEAD:
                assert (int(source[number]), int(destination[number])) == (state, after)
    assert len(source) < int((automaton.delta != DEAD).sum())


def test_a_literal_less_likely_than_any_float_still_counts():
    texts = ["", *"abcdefgh"]
    emission = torch.tensor([[1.0, 1.0, *[1e-12] * 7], [1.0, 1e-3, *[1e-12] * 7]])
    model = HMM(torch.tensor([0.5, 0.5]), torch.full((2, 2), 0.5), emission / emission.sum(-1, keepdim=True))
    automaton = compile_template(template(Slot(stop=("bcdefgh",))), texts, END)
    ahead = Lookahead(model, automaton, 40)
    begin, state = torch.tensor([0]), model.initial[None]
    log_c, _ = ahead.reweigh(state, begin, torch.tensor([40]))
    assert float(log_c[0, texts.index("b")]) < -120  # below the smallest float32
    assert torch.isfinite(log_c[0, 1:]).all()
    # to begin now is better than to hope for another of the places that are left
    assert 10 < float(log_c[0, texts.index("b")] - log_c[0, texts.index("a")]) < 40
    # but without the places for all of it, nothing else is allowed
    last, _ = ahead.reweigh(state, begin, torch.tensor([7]))
    assert last[0].isfinite().nonzero().flatten().tolist() == [texts.index("b")]


def test_the_smallest_set_of_hidden_states():
    mass = torch.tensor([[0.1, 0.6, 0.3], [0.98, 0.01, 0.01]])
    states, kept = smallest_set(mass, 0.1)
    assert states.tolist() == [[1, 2], [0, 1]]
    assert torch.allclose(kept, torch.tensor([[2 / 3, 1 / 3], [1.0, 0.0]]))
    states, kept = smallest_set(mass, 1.0)  # whatever is asked for, one stays
    assert states.tolist() == [[1], [0]]


def test_pruning_computes_what_a_message_of_the_kept_states_gives(model, automaton):
    ahead = Lookahead(model, automaton, LENGTH)
    message = torch.tensor([[0.7, 0.25, 0.05]]).double()
    states, remaining = torch.tensor([0]), torch.tensor([4])
    pruned, used = ahead.reweigh(message, states, remaining, eps=0.1)
    small = torch.tensor([[0.7, 0.25, 0.0]]).double() / 0.95
    exact, _ = ahead.reweigh(small, states, remaining)
    assert used.tolist() == [2]
    assert torch.allclose(pruned, exact)
    token = torch.tensor([1])
    assert torch.allclose(ahead.advance(message, token, eps=0.1), ahead.advance(small, token))


def test_pruning_forbids_no_way_that_is_left():
    # only the state that pruning drops can write what the format asks for
    emission = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    model = HMM(torch.tensor([0.999, 0.001]), torch.eye(2), emission)
    ahead = Lookahead(model, compile_template(template("bb"), TEXTS, END), 3)
    log_c, _ = ahead.reweigh(model.initial[None], torch.tensor([0]), torch.tensor([3]), eps=0.01)
    assert log_c[0].isfinite().tolist() == [False, False, True, False]
    message = ahead.advance(model.initial[None], torch.tensor([2]), eps=0.01)
    assert torch.isfinite(message).all()

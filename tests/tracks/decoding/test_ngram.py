"""The n-gram draft: its probabilities, and that decoding with it is lossless."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.decoding.decoders import ngram as module
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.ngram import NGram, NGramDraft, NGramProposer
from kdbench.tracks.decoding.decoders.speculative import draw
from kdbench.tracks.llm.data.encoding import pack
from tests.helpers.causal import chi_square, exact, frequencies, llama

V = 6
NONE = V
ROWS = [[0, 2, 3, 2, 3, 4], [0, 2, 3, 3, 1], [0, 4, 2, 3, 2, 5, 1]]
TEXT = pack(ROWS, [1, 2, 1], pad=1)


def by_hand(context, order, rows=ROWS, starts=(1, 2, 1)):
    """Witten-Bell interpolation from the definition."""
    p = [1 / V] * V
    for n in range(1, order + 1):
        h = ([NONE] * order + list(context))[order + len(context) - (n - 1) :]
        after = Counter()
        for row, start in zip(rows, starts, strict=True):
            for t in range(start, len(row)):
                before = ([NONE] * order + row[:t])[order + t - (n - 1) :]
                if before == h:
                    after[row[t]] += 1
        if after:
            total, types = sum(after.values()), len(after)
            p = [(after[w] + types * p[w]) / (total + types) for w in range(V)]
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_are_interpolated_counts(order):
    model = NGram.fit(TEXT, order, V)
    contexts = [[0], [0, 2], [2, 3], [5, 5], [3, 2], [0, 4, 2], [1, 2, 3]]
    padded = torch.tensor([([NONE] * order + c)[len(c) + 1 :] for c in contexts]).reshape(len(contexts), order - 1)
    expected = torch.tensor([by_hand(row, order) for row in padded.tolist()], dtype=torch.float64)
    found = model.distribution(padded)
    assert torch.allclose(found, expected)
    assert torch.allclose(found.sum(-1), torch.ones(len(contexts), dtype=torch.float64))
    assert (found > 0).all()


def test_an_unseen_context_backs_off_and_no_counts_are_uniform():
    model, lower = NGram.fit(TEXT, 3, V), NGram.fit(TEXT, 2, V)
    assert torch.equal(model.distribution(torch.tensor([[5, 3]])), lower.distribution(torch.tensor([[3]])))
    assert torch.allclose(NGram(3, V).distribution(torch.tensor([[2, 3]])), torch.full((1, V), 1 / V).double())


def test_the_prompt_is_context_but_not_an_event():
    model = NGram.fit(pack([[0, 2, 3, 4]], [3], pad=1), 3, V)
    unigram = model.distribution(torch.tensor([[5, 5]]))[0]
    assert unigram.argmax() == 4
    assert unigram[2] == unigram[3] == unigram[0]  # tokens of the prompt were never predicted
    assert model.distribution(torch.tensor([[2, 3]]))[0, 4] > unigram[4]


def test_teacher_forcing_gives_the_probabilities_of_proposals():
    model, batch = NGram.fit(TEXT, 3, V), TEXT.batch(torch.arange(3))
    found = model.scored_logits(batch)
    contexts = [
        (row, t) for row, start in zip(ROWS, (1, 2, 1), strict=True) for t in range(start, len(row))
    ]  # row-major, as the batch
    expected = [by_hand(([NONE, NONE, *row[:t]])[-2:], 3) for row, t in contexts]
    assert torch.allclose(found.exp(), torch.tensor(expected))


def test_unusable_orders_are_refused():
    for order, vocabulary in ((0, 10), (4, 100_000)):
        with pytest.raises(UsageError, match=r"order"):
            NGram(order, vocabulary)


def test_the_proposer_follows_what_was_accepted():
    model = NGram.fit(TEXT, 3, V)
    proposer, again = NGramProposer(model), NGramProposer(model)
    proposer.start([[0, 2, 3], [0], [0, 4, 2]], pad=1)
    noise = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    tokens, q = proposer.propose(torch.tensor([3, 0, 2]), 4, 1.0, noise)
    assert torch.equal(tokens, torch.stack([draw(q[:, i], noise[:, i]) for i in range(4)], dim=1))
    proposer.accept(tokens, torch.tensor([0, 4, 2]))
    proposer.select(torch.tensor([2, 0, 1]))
    rows = [[0, 4, 2, *tokens[2, :2].tolist(), 5], [0, 2, 3, 5], [0, *tokens[1].tolist(), 2]]
    again.start(rows, pad=1)
    last = torch.tensor([row[-1] for row in rows])
    for mine, theirs in zip(proposer.propose(last, 2, 0.7, noise), again.propose(last, 2, 0.7, noise), strict=True):
        assert torch.equal(mine, theirs)


# --- lossless decoding ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target():
    return llama(vocabulary=V, seed=1)


def p_value(target, gamma):
    """Chi-square of sampled continuations against what the target gives them."""
    prompt, generator = [0, 2, 3], torch.Generator().manual_seed(1)
    options = {"max_new": 3, "eos": -1, "pad": 1, "temperature": 1.0, "generator": generator}
    written = NGramDraft(NGram.fit(TEXT, 3, V), gamma).decode(target, [prompt] * 2000, **options)
    responses, expected = exact(target, prompt, 3)
    return chi_square(frequencies(responses, written.tokens), expected), written


@pytest.mark.parametrize("gamma", [1, 4])
def test_sampling_is_distributed_as_the_target(target, gamma):
    p, out = p_value(target, gamma)
    assert p > 1e-4
    assert 0.1 < sum(out.extra["accepted"]) / sum(out.extra["proposed"]) < 0.95


def test_probabilities_that_are_not_those_of_the_proposals_are_found_out(target, monkeypatch):
    honest = NGramProposer.propose

    def dishonest(self, *arguments):
        tokens, q = honest(self, *arguments)
        return tokens, torch.full_like(q, 1 / V)

    monkeypatch.setattr(module.NGramProposer, "propose", dishonest)
    p, _ = p_value(target, 4)
    assert p < 1e-10


@pytest.mark.parametrize("gamma", [1, 3, 7])
def test_greedy_decoding_gives_the_tokens_of_the_target(target, gamma):
    prompts, options = [[0, 2, 3], [0], [0, 4, 2, 2, 5]], {"max_new": 12, "eos": 1, "pad": 1}
    draft = NGramDraft(NGram.fit(TEXT, 3, V), gamma)
    out, plain = (decoder.decode(target, prompts, **options) for decoder in (draft, Autoregressive()))
    assert out.tokens == plain.tokens
    assert sum(plain.forwards) == sum(map(len, plain.tokens))


def test_saved_and_loaded_it_proposes_the_same(target, tmp_path):
    draft = NGramDraft(NGram.fit(TEXT, 3, V), 5)
    draft.save(tmp_path / "x")
    task = SimpleNamespace(device=torch.device("cpu"), spec=SimpleNamespace(evaluation=SimpleNamespace(gamma=5)))
    again = NGramDraft.load(tmp_path / "x", task)
    context = torch.tensor([[2, 3], [5, 0]])
    assert torch.equal(again.draft.distribution(context), draft.draft.distribution(context))
    assert sum(p.numel() for net in again.networks().values() for p in net.parameters()) == 0
    assert again.draft.entries == draft.draft.entries > 20
    with pytest.raises(UsageError, match="lenience"):
        draft.at(5, lambda p: 2 * p).save(tmp_path / "y")

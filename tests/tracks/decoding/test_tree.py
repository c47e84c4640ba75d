"""Trees of proposals: how they grow, and that what is written stays what the target alone writes."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.decoding.blocks.drafting import Drafting
from kdbench.tracks.decoding.blocks.eagle import Eagle
from kdbench.tracks.decoding.decoders import tree as trees
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.speculative import verify
from kdbench.tracks.decoding.decoders.tree import Shape, Tree, TreeDecoder, grow, rerank, verify_tree
from tests.helpers.causal import chi_square, exact, frequencies, gpt2, llama

PROMPT = [1, 2]
MANY = 3000
SHAPES = [Shape(4, 4, 16), Shape(3, 2, 4), Shape(3, 1, 3)]


def eagle_of(target, seed=0):
    torch.manual_seed(seed)
    return Eagle(target).eval()


@pytest.fixture
def grown():
    """A target, rows that it has read, a draft at work and the tree that it proposes."""
    target = llama(vocabulary=12, seed=5)
    drafting = Drafting(eagle_of(target), target)
    prompts = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]
    session = trees.Session(target)
    prefix = session.prefill([prompt[:-1] for prompt in prompts], 0)
    drafting.start(prefix, torch.tensor([prompt[-1] for prompt in prompts]))
    return target, session, prompts, grow(drafting, Shape(4, 3, 10), 0.0, torch.zeros(3, 4))


def test_a_tree_is_closed_and_its_scores_are_those_of_its_paths(grown):
    *_, tree = grown
    assert tree.tokens.shape == (3, 10)
    places = torch.arange(10)
    assert bool((tree.parents < places).all())
    assert bool((tree.depths[tree.parents < 0] == 1).all())
    for row in range(3):
        for place in range(10):
            parent = int(tree.parents[row, place])
            above = 0.0 if parent < 0 else float(tree.scores[row, parent])
            assert float(tree.scores[row, place]) <= above
            assert int(tree.depths[row, place]) == 1 + (0 if parent < 0 else int(tree.depths[row, parent]))
        family = list(zip(tree.parents[row].tolist(), tree.tokens[row].tolist(), strict=True))
        assert len(set(family)) == len(family)


def test_reranking_keeps_the_most_probable_nodes(grown):
    *_, tree = grown
    smaller = rerank(tree, 4)
    best = tree.scores.sort(dim=1, descending=True).values[:, :4]
    torch.testing.assert_close(smaller.scores.sort(dim=1, descending=True).values, best)
    for row in range(3):
        for place, parent in enumerate(smaller.parents[row].tolist()):
            assert parent < place
            assert smaller.depths[row, place] == 1 + (0 if parent < 0 else smaller.depths[row, parent])


def test_every_node_is_read_as_the_end_of_its_own_path(grown):
    """Tree attention of the target: logits of a node are those after its path alone."""
    target, session, prompts, tree = grown
    ids = torch.cat([torch.tensor([[prompt[-1]] for prompt in prompts]), tree.tokens], dim=1)
    positions = session.lengths[:, None] + torch.nn.functional.pad(tree.depths, (1, 0))
    logits = session.forward(ids, positions=positions, visible=tree.ancestors())
    for row, prompt in enumerate(prompts):
        for place in range(10):
            path, node = [], place
            while node >= 0:
                path.insert(0, int(tree.tokens[row, node]))
                node = int(tree.parents[row, node])
            with torch.no_grad():
                alone = target(torch.tensor([[*prompt, *path]])).logits[0, -1]
            torch.testing.assert_close(logits[row, place + 1], alone, rtol=1e-4, atol=1e-4)


def test_the_draft_reads_a_node_as_the_end_of_its_own_path():
    """Chains of the draft's own best tokens, grown beside others, have the scores that they have alone."""
    target = llama(vocabulary=12, seed=6)
    prompts = [[1, 2, 3, 4], [5, 6]]

    def propose(shape):
        drafting = Drafting(eagle_of(target), target)
        prefix = trees.Session(target).prefill([prompt[:-1] for prompt in prompts], 0)
        drafting.start(prefix, torch.tensor([prompt[-1] for prompt in prompts]))
        return grow(drafting, shape, 0.0, torch.zeros(2, shape.depth))

    chain, tree = propose(Shape(3, 1, 3)), propose(Shape(3, 3, 100))
    for row in range(2):
        node = -1
        for level in range(3):
            children = [i for i in range(tree.tokens.shape[1]) if int(tree.parents[row, i]) == node]
            node = children[0]  # the best child comes first
            assert tree.tokens[row, node] == chain.tokens[row, level]
            torch.testing.assert_close(tree.scores[row, node], chain.scores[row, level], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_decoding_is_that_of_the_target_token_for_token(shape):
    target = llama(vocabulary=24, seed=3)
    prompts = [[1, 2, 3], [4, 9], [5, 6, 7, 8, 9, 10], [11, 12]]
    decoder = TreeDecoder(eagle_of(target), shape)
    alone = Autoregressive().decode(target, prompts, max_new=10, eos=20, pad=0)
    together = decoder.decode(target, prompts, max_new=10, eos=20, pad=0)
    assert together.tokens == alone.tokens
    assert together.tokens[:1] == decoder.decode(target, prompts[:1], max_new=10, eos=20, pad=0).tokens
    rounds, accepted = together.forwards, together.extra["accepted"]
    assert all(n <= t + a for n, t, a in zip(map(len, together.tokens), rounds, accepted, strict=True))


@pytest.mark.parametrize("shape", [Shape(2, 2, 5), Shape(2, 1, 2), Shape(2, 1, 2, drawn=True)])
def test_samples_are_distributed_as_those_of_the_target(target, shape):
    assert _p_value(target, shape) > 1e-4


def test_the_test_of_the_distribution_sees_a_wrong_rule(target, monkeypatch):
    """A rejected proposal stays possible here: what follows is drawn from p."""

    def wrong(p, tree, uniform, last):
        kept, _ = verify_tree(p, tree, uniform, last)
        place = (kept * torch.arange(kept.shape[1])).argmax(dim=1)
        return kept, trees.draw(p[torch.arange(len(p)), place], last)

    monkeypatch.setattr(trees, "verify_tree", wrong)
    assert _p_value(target, Shape(2, 2, 5)) < 1e-6


def _p_value(target, shape):
    responses, expected = exact(target, PROMPT, 2)
    generator = torch.Generator().manual_seed(0)
    decoder = TreeDecoder(eagle_of(target), shape)
    options = {"max_new": 2, "eos": -1, "pad": 0, "temperature": 1.0, "generator": generator}
    return chi_square(frequencies(responses, decoder.decode(target, [PROMPT] * MANY, **options).tokens), expected)


def test_a_drawn_chain_follows_the_rule_of_speculative_sampling():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(200, 4, 6, generator=generator, dtype=torch.float64).softmax(-1)
    q = (3 * torch.rand(200, 3, 6, generator=generator, dtype=torch.float64)).softmax(-1)
    tokens = torch.randint(6, (200, 3), generator=generator)
    uniform, last = (torch.rand(200, n, generator=generator, dtype=torch.float64) for n in (3, 1))
    parents, depths = torch.tensor([-1, 0, 1]).expand(200, 3), torch.tensor([1, 2, 3]).expand(200, 3)
    kept, follows = verify_tree(p, Tree(tokens, parents, depths, torch.zeros(200, 3), q), uniform, last[:, 0])
    count, wanted = verify(p, q, tokens, uniform, last[:, 0])
    assert kept.sum(dim=1).sub(1).tolist() == count.tolist()
    assert follows.tolist() == wanted.tolist()


def test_shapes_and_targets_that_cannot_be():
    with pytest.raises(UsageError, match="at least 1"):
        Shape(depth=0)
    with pytest.raises(UsageError, match="picked, not drawn"):
        Shape(breadth=2, drawn=True)
    with pytest.raises(UsageError, match="rotary positions"):
        Eagle(gpt2())
    target = llama()
    decoder = TreeDecoder(eagle_of(target), Shape())
    with pytest.raises(UsageError, match="two tokens"):
        decoder.decode(target, [[1]], max_new=2, eos=-1, pad=0)
    with pytest.raises(ValueError, match="generator"):
        decoder.decode(target, [PROMPT], max_new=2, eos=-1, pad=0, temperature=1.0)

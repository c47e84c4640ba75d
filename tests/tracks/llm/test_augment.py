"""Changed texts: what stays, what changes, and that both networks read the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.tracks.llm.blocks.augment import Augmenter, View, hide_or_replace, pooled, swap_or_delete
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import build, token_nll
from kdbench.tracks.llm.spec import Net

PAD = 0


class Words:
    """As much of a tokenizer as is needed: 40 tokens, the first three special."""

    all_special_ids = (0, 1, 2)
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self) -> int:
        return 40


def batch(rows: int = 40, length: int = 12) -> TextBatch:
    """Rows of different lengths and different tokens, 3 and above, after a start token."""
    lengths = torch.arange(rows) % (length - 3) + 4
    present = torch.arange(length) < lengths[:, None]
    ids = torch.stack(
        [torch.randperm(37, generator=torch.Generator().manual_seed(i))[:length] + 3 for i in range(rows)]
    )
    ids[:, 0] = 1
    labels = torch.arange(rows) % 2
    return TextBatch(ids.masked_fill(~present, PAD), present.long(), labels, torch.arange(rows))


def words(one: TextBatch, row: int) -> list[int]:
    return one.input_ids[row][one.attention_mask[row] > 0].tolist()


def test_tokens_are_hidden_or_replaced_at_the_rate_and_the_first_stays():
    before = batch(400)
    after = hide_or_replace(before, 0.3, [39], np.random.default_rng(0))
    own = before.attention_mask[:, 1:] > 0
    hidden = (own & (after.attention_mask[:, 1:] == 0)).sum() / own.sum()
    replaced = (own & (after.input_ids[:, 1:] != before.input_ids[:, 1:])).sum() / own.sum()
    assert hidden.item() == pytest.approx(0.15, abs=0.03)
    assert replaced.item() == pytest.approx(0.15, abs=0.03)
    assert torch.equal(after.input_ids[:, 0], before.input_ids[:, 0])
    assert after.attention_mask[:, 0].all()
    assert (after.attention_mask <= before.attention_mask).all()
    assert (after.index == -1).all()


def test_order_changes_keep_the_words_or_lose_some():
    before = batch(200)
    after = swap_or_delete(before, 0.3, PAD, np.random.default_rng(0))
    kinds = []
    for row in range(len(before)):
        old, new = words(before, row), words(after, row)
        assert new[0] == 1
        assert len(new) > 1
        if len(new) == len(old):
            assert sorted(new) == sorted(old)
            kinds.append(new != old)
        else:
            rest = iter(old)
            assert all(token in rest for token in new)  # in their order
            kinds.append(None)
    assert kinds.count(True) > 60 < kinds.count(None)
    assert (after.input_ids[after.attention_mask == 0] == PAD).all()


def test_only_a_share_of_the_rows_changes():
    for kind in ("tokens", "order"):
        view = Augmenter(kind, Words(), np.random.default_rng(0), rate=0.5, share=0.5)(batch(200))
        changed = view.batch.index == -1
        assert 60 < changed.sum() < 140
        assert torch.equal(view.batch.input_ids[~changed], batch(200).input_ids[~changed])
    same = Augmenter("none", Words(), np.random.default_rng(0))(batch())
    assert torch.equal(same.batch.index, batch().index)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build(Net(family="encoder", layers=1, width=16, heads=2), Words(), classes=2).eval()


def test_mixed_with_all_weight_on_itself_is_the_row_itself(net):
    plain = batch(6)
    mixed = View(plain, torch.randperm(6), torch.ones(6))
    torch.testing.assert_close(mixed.read(net).logits, View(plain).read(net).logits)
    half = View(plain, torch.arange(6), torch.full((6,), 0.5))  # with itself
    torch.testing.assert_close(half.read(net).logits, View(plain).read(net).logits)


def test_mixing_with_no_weight_on_itself_is_the_partner_where_it_is_longer(net):
    plain = batch(6)
    partner = torch.full((6,), 5)
    mixed = View(plain, partner, torch.zeros(6))
    torch.testing.assert_close(mixed.read(net).logits, View(plain).read(net).logits[partner])


def test_labels_are_mixed_like_the_texts(net):
    plain = batch(6)
    partner, share = torch.tensor([1, 0, 3, 2, 5, 4]), torch.linspace(0, 1, 6)
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    value = View(plain, partner, share).label_loss(lambda labels: token_nll(logits, labels))
    soft = share[:, None] * torch.eye(2)[plain.labels] + (1 - share)[:, None] * torch.eye(2)[plain.labels[partner]]
    assert value.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, soft).item())


def test_features_are_means_of_the_tokens_that_are_read(net):
    plain = batch(6)
    states = View(plain).read(net).hidden_states
    means = pooled(states, plain.attention_mask)
    assert len(means) == 2
    own = int(plain.attention_mask[0].sum())
    torch.testing.assert_close(means[1][0], states[1][0, :own].mean(0))
    torch.testing.assert_close(pooled(states, plain.attention_mask, "first")[1], states[1][:, 0])


def test_the_vocabulary_of_replacements_has_no_special_token():
    assert set(Augmenter("tokens", Words(), np.random.default_rng(0)).words) == set(range(3, 40))

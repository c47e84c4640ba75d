"""What is settled, guessed, recycled and promoted, with a model that is a function of the text."""

from __future__ import annotations

import pytest

from kdbench.errors import UsageError
from kdbench.tracks.decoding.blocks.guesses import Row, Window

PROMPT, END = [1, 2, 3], 9


def after(say, row):
    """What a model says after the last token of a row and after each token of each branch."""
    text = [*row.prompt, *row.tokens]
    return [[say([*text, *branch[:i]]) for i in range(len(branch) + 1)] for branch in row.branches()]


def write(say, window, max_new=40, prompt=PROMPT):
    row = Row(prompt, window, max_new, END)
    while not row.done:
        row.settle(after(say, row))
    return row


def alone(say, max_new=40, prompt=PROMPT):
    text = list(prompt)
    while len(text) < len(prompt) + max_new and text[-1:] != [END]:
        text.append(say(text))
    return text[len(prompt) :]


def by_place(text):
    """Says the same whatever the text is: a token of its own for each place."""
    return 100 + len(text)


def by_all(text):
    """Depends on every token: a wrong guess spoils all that follows."""
    return sum((place + 7) * token for place, token in enumerate(text)) % 11 % 9


def by_last_two(text):
    return (3 * text[-1] + sum(text[-2:]) + 1) % 8


WINDOWS = [Window(n, k, r, pool) for n, k, r, pool in [(1, 1, 1, 0), (4, 1, 1, 0), (8, 1, 1, 4), (8, 2, 0.85, 4)]]
WINDOWS += [Window(5, 4, 0.2, 3), Window(3, 3, 0.5, 0), Window(64, 2, 0.85, 4)]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("say", [by_place, by_all, by_last_two])
def test_every_window_writes_what_the_model_writes_alone(say, window):
    for prompt in (PROMPT, [5], [7, 7, 7, 1]):
        row = write(say, window, prompt=prompt)
        assert row.tokens == alone(say, prompt=prompt)
        assert row.forwards <= len(row.tokens)


def test_the_end_is_the_last_token_and_nothing_is_longer_than_asked():
    def ends(text):
        return END if len(text) == 9 else 4

    assert write(ends, Window(8, 2)).tokens == [4] * 6 + [END]
    assert write(by_place, Window(8, 2), max_new=3).tokens == [103, 104, 105]


def test_a_model_that_needs_no_context_settles_a_block_in_two_forwards():
    # the first one settles a token and corrects the guesses, the second one settles them and begins the next block
    row = write(by_place, Window(8, 1, 1, 0), max_new=1 + 8 * 4)
    assert row.forwards == 8
    assert [len(block) - 1 for block in row.trajectory()] == [1, 1, 1, 1, 0]


def test_a_block_that_is_guessed_behind_saves_a_forward_each():
    row = write(by_place, Window(8, 2, 0.1, 0), max_new=1 + 8 * 4)
    assert row.forwards == 5
    assert row.spawned == 4


def test_the_next_block_is_begun_when_enough_of_the_newest_is_settled():
    row = Row(PROMPT, Window(8, 2, 0.85, 0), 40, END)
    row.guesses = [100 + len(PROMPT) + place for place in range(6)] + [0, 0]
    row.settle(after(by_place, row))
    assert len(row.tokens) == 7  # six right guesses and a further token: ceil(0.85 * 8)
    assert (row.spawned, len(row.guesses), row.current) == (1, 9, 1)
    again = Row(PROMPT, Window(8, 2, 0.85, 0), 40, END)
    again.guesses = row.tokens[:5] + [0, 0, 0]
    again.settle(after(by_place, again))
    assert (len(again.tokens), again.spawned, len(again.guesses)) == (6, 0, 2)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_blocks_are_begun_where_the_newest_agrees_with_itself_up_to_as_many_as_allowed(blocks):
    def slow_at_first(text):
        return sum((place + 7) * token for place, token in enumerate(text)) % 97 if len(text) < 11 else by_place(text)

    row = Row(PROMPT, Window(8, blocks, 0.25, 0), 100, END)
    while len(row.tokens) < 7:
        row.settle(after(slow_at_first, row))
        assert len(row.tokens) + len(row.guesses) <= 8 * blocks
    assert len(row.tokens) + len(row.guesses) == 8 * blocks
    assert row.forwards == 7


def test_what_is_guessed_behind_a_block_is_not_settled_before_it():
    row = Row(PROMPT, Window(4, 2, 0.25, 0), 40, END)
    right = alone(by_place)
    row.settle(after(by_place, row))
    assert row.spawned == 1
    row.guesses = [0, *right[2:4], *right[4:8]]  # the block behind is right, the block itself is not
    row.settle(after(by_place, row))
    assert row.tokens == right[:2]
    row.settle(after(by_place, row))  # now the block is settled, and the one behind it is promoted and verified
    assert row.tokens == right[:9]


def test_rejected_guesses_are_recycled_where_the_newest_token_occurs_in_them():
    row = Row(PROMPT, Window(4, 1, 1, 4), 40, END)
    row.tokens, row.guesses = [5], [0, 0, 0]
    row.pool.extend([[8, 5, 6, 7], [1, 1], [4, 5], [5, 8]])
    # the newest first; what is too short is filled up from the guesses; the last token alone says nothing
    assert row.branches() == [[0, 0, 0], [8, 0, 0], [6, 7, 0]]
    best, count = row.settle([[6, 1, 1, 1], [6, 2, 2, 2], [6, 7, 2, 3]])
    assert (best, count, row.recycled) == (2, 2, 1)
    assert row.tokens == [5, 6, 7, 2]


def test_equal_branches_leave_it_with_the_guesses():
    row = Row(PROMPT, Window(4, 1, 1, 4), 40, END)
    row.tokens, row.guesses = [5], [6, 0, 0]
    row.pool.append([5, 6, 7])
    assert row.branches()[1:] == [[6, 7, 0]]
    assert row.settle([[6, 1, 2, 3], [6, 1, 9, 9]]) == (0, 1)
    assert row.guesses == [2]  # the guesses refined on their own branch


def test_the_pool_takes_what_was_rejected_but_no_random_guesses():
    row = Row(PROMPT, Window(4, 1, 1, 2), 40, END)
    row.branches()
    row.settle([[0, 5, 6, 7, 8]])
    assert list(row.pool) == []
    assert row.guesses == [5, 6, 7]
    row.branches()
    row.settle([[5, 1, 1, 1]])
    assert list(row.pool) == [[6, 7]]


def test_random_guesses_come_from_the_text_and_are_those_of_the_prompt():
    rows = [Row([11, 12], Window(32, 1, 1, 0), 64, END) for _ in range(2)]
    assert rows[0].guesses == rows[1].guesses
    assert set(rows[0].guesses) == {11, 12}
    assert Row([12, 11], Window(32, 1, 1, 0), 64, END).guesses != rows[0].guesses


def test_trajectories_hold_every_iterate_without_repetition_and_end_in_the_text():
    row = write(by_last_two, Window(4, 1, 1, 0), max_new=10)
    blocks = row.trajectory()
    assert [token for block in blocks for token in block[-1]] == row.tokens
    assert [len(block[-1]) for block in blocks] == [4, 4, 2]
    for block in blocks:
        assert all(len(iterate) == len(block[-1]) for iterate in block)
        assert len({tuple(iterate) for iterate in block}) == len(block)


@pytest.mark.parametrize("change", [{"block": 0}, {"blocks": 0}, {"ratio": 0.0}, {"ratio": 1.5}, {"pool": -1}])
def test_windows_that_make_no_sense_are_refused(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        Window(**change)

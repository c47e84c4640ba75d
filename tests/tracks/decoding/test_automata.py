"""Automata against the regular expression of their template and against every tokenisation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdbench.tracks.decoding.blocks.automata import (
    DEAD,
    NEVER,
    Automaton,
    Trie,
    compile_template,
    everything,
    tokenisations,
)
from kdbench.tracks.decoding.blocks.templates import Literal, Slot, Template, template

LETTERS = ["", "a", "b", "c", "1", "2"]  # token 0 is the end
END = 0


def encode(text: str) -> list[int]:
    return [LETTERS.index(c) for c in text]


@pytest.mark.parametrize(
    "parts",
    [
        ["ab"],
        [["a", "ab", "b"], "b"],  # an option that another one begins with
        [Slot(stop=("ab",)), Slot("n", "12", 1, 2)],
        [Slot(stop=("aab", "ba")), "c"],  # a stop literal that begins inside another beginning
        [Slot(stop=("aabac",))],
        [Slot("x", "ab", 1, 3, stop=("c",)), Slot("y", "12", 0, 1, stop=("a",))],
        [Slot("x", "ab", 1, None, stop=("ab1",)), ["1", "2"]],
        [Slot("x", "a1", 1, 2, stop=("1b", "ac"))],
        [Slot("x", "ab", 0, 2), "a", Slot("y", "b", 1)],  # slots that end where the template goes on
    ],
)
def test_the_automaton_takes_exactly_the_texts_of_the_template(parts):
    made = template(*parts)
    automaton = compile_template(made, LETTERS, END)
    fits = 0
    for length in range(6):
        for text in map("".join, itertools.product("abc12", repeat=length)):
            wanted = made.read(text) is not None
            fits += wanted
            assert automaton.accepts(encode(text)) == wanted, text
            assert automaton.accepts([*encode(text), END, 3, END]) == wanted
    assert fits


def test_a_stop_literal_that_fails_late_is_found_again():
    automaton = compile_template(template(Slot(stop=("aab",))), LETTERS, END)
    assert automaton.accepts(encode("aaab"))
    trie = Trie(["aab"])
    assert trie.failure == [0, 0, 1, 0]
    without = trie.failure.copy()
    without[2] = 0  # a trie that starts over instead misses it
    node = 0
    for character in "aaab":
        node = trie.step(node, character, without)
    assert node not in trie.terminal


def test_every_tokenisation_is_a_path_and_meets_the_others():
    texts = ["", "a", "b", "ab", "ba", "aba", "bab", "c", "bc"]
    automaton = compile_template(template("abab", Slot(stop=("bc",))), texts, END)
    ways = tokenisations("abab", texts)
    assert len(ways) == 7
    assert len({automaton.walk(way) for way in ways}) == 1
    for way in tokenisations("ababaabc", texts):
        assert automaton.accepts(way)
    # of the beginning, shared prefixes are one state: none, a, ab, aba, abab
    assert automaton.states == 5 + 1 + 1 + 1  # b read, stop found, ended


def test_tokens_over_the_end_of_a_segment_are_paths_too():
    texts = ["", "a", "1", "2", "}", "1}", "a1", "a1}"]
    automaton = compile_template(template("a", Slot("n", "12", 1, 3), "}"), texts, END)
    for text in ("a1}", "a21}"):
        for way in tokenisations(text, texts):
            assert automaton.accepts([*way, END]), way
    assert automaton.walk([texts.index("a"), texts.index("a1}")]) == DEAD


def test_options_share_their_beginnings():
    trie = Trie(["yes", "yellow", "no"])
    assert len(trie.children) == 1 + 3 + 4 + 2


def test_distance_is_the_shortest_way():
    automaton = compile_template(template(Slot(stop=("ab",)), Slot("n", "12", 2, 3)), LETTERS, END)
    assert int(automaton.distance[0]) == 4
    ends = automaton.accepting.nonzero().flatten().tolist()
    for text in ("", "a", "c", "ba", "aab", "ab1", "ab12", "cab121"):
        state = automaton.walk(encode(text))
        shortest = next(
            n
            for n in range(5)
            if any(automaton.walk(rest, state) in ends for rest in itertools.product(range(6), repeat=n))
        )
        assert int(automaton.distance[state]) == shortest


def test_trimming_drops_what_is_useless_and_keeps_the_language():
    delta = torch.tensor([[1, 2], [1, DEAD], [2, 2], [0, 1]])
    automaton = Automaton(delta, torch.tensor([False, True, False, True]))
    assert automaton.distance.tolist() == [1, 0, NEVER, 0]
    small = automaton.trimmed()
    assert small.delta.tolist() == [[1, DEAD], [1, DEAD]]
    assert small.accepting.tolist() == [False, True]


def test_everything_is_accepted():
    automaton = everything(5)
    assert automaton.accepts([])
    assert automaton.accepts([4, 0, 2])


def test_mistakes_are_said():
    with pytest.raises(ValueError, match="no text of these tokens"):
        compile_template(template("xyz"), LETTERS, END)
    with pytest.raises(ValueError, match="never stops"):
        Slot(stop=("a", "bab"))
    with pytest.raises(ValueError, match="holds nothing"):
        Slot(least=3, most=2)
    with pytest.raises(ValueError, match="at least one character"):
        Literal(("a", ""))


def test_names_are_read_back():
    made = Template((Slot(stop=("=",)), Slot("n", "0123456789", 1, 3), Literal(("; yes", "; no"), "verdict")))
    assert made.read("so x=12; no") == {"n": "12", "verdict": "; no"}
    assert made.read("so x=1234; no") is None


def test_random_templates_agree_with_their_expression():
    rng = np.random.default_rng(0)
    for _ in range(30):
        parts = []
        for _ in range(rng.integers(1, 4)):
            word = "".join(rng.choice(list("ab"), rng.integers(1, 4)))
            if rng.random() < 0.5:
                parts.append(word)
            else:
                least = int(rng.integers(0, 3))
                most = None if rng.random() < 0.5 else least + int(rng.integers(1, 3))
                parts.append(Slot(allowed=rng.choice(["ab", "abc", "b"]), least=least, most=most, stop=(word,)))
        made = template(*parts)
        try:
            automaton = compile_template(made, LETTERS, END)
        except ValueError:
            texts = map("".join, itertools.product("abc", repeat=6))
            assert all(made.read(text) is None for text in texts)
            continue
        for _ in range(300):
            text = "".join(rng.choice(list("abc"), rng.integers(0, 10), p=[0.45, 0.45, 0.1]))
            assert automaton.accepts(encode(text)) == (made.read(text) is not None), (parts, text)

"""From a template to a deterministic automaton over the tokens of a vocabulary.

Literals are tries, so that options share their beginnings; slots read with the failure links of Aho and Corasick
(Communications of the ACM 1975) of their stop literals, so that a stop that begins inside another beginning is not
missed. That gives an automaton over characters. A token is a step along its whole text: every way to cut a text into
tokens is a path, those included whose tokens reach over the end of a literal or slot, and paths meet again in the state
of the text that they have in common.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.tracks.decoding.blocks.templates import Literal, Slot, Template

DEAD = -1
"""No state: the format cannot be met any more."""
NEVER = 1 << 30
"""Distance of a state from which no accepting one is reached."""


class Trie:
    """Texts by their characters; node 0 is the empty text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.children: list[dict[str, int]] = [{}]
        self.prefix: list[str] = [""]
        self.terminal: set[int] = set()
        for text in texts:
            node = 0
            for character in text:
                if character not in self.children[node]:
                    self.children[node][character] = len(self.children)
                    self.prefix.append(self.prefix[node] + character)
                    self.children.append({})
                node = self.children[node][character]
            self.terminal.add(node)

    @cached_property
    def failure(self) -> list[int]:
        """For each node the one of its longest proper suffix that is a beginning of a text."""
        links = [0] * len(self.children)
        queue = deque(self.children[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self.children[node].items():
                links[child] = self.step(links[node], character, links)
                queue.append(child)
        return links

    def step(self, node: int, character: str, failure: list[int] | None = None) -> int:
        """The node of the longest suffix of the text read so far that is a beginning of a text."""
        links = self.failure if failure is None else failure
        while node and character not in self.children[node]:
            node = links[node]
        return self.children[node].get(character, 0)


Place = tuple[int, int, int]
"""Segment, confirmed characters of its slot, node of its trie."""


class Characters:
    """The automaton over characters: from a set of places, which a text can have come to, to the next set."""

    def __init__(self, template: Template) -> None:
        self.segments = template.segments
        self.tries = [Trie(part.options if isinstance(part, Literal) else part.stop) for part in self.segments]
        self.start = frozenset(self.closure((0, 0, 0)))
        self.end: Place = (len(self.segments), 0, 0)

    def closure(self, place: Place) -> list[Place]:
        """A place, and where it stands as well without reading anything."""
        segment, count, node = place
        if segment == len(self.segments):
            return [place]
        part, trie = self.segments[segment], self.tries[segment]
        if isinstance(part, Literal):
            over = node in trie.terminal
        else:
            over = not part.stop and count >= part.least
        here = [place] if not over or isinstance(part, Slot) or trie.children[node] else []
        return here + (self.closure((segment + 1, 0, 0)) if over else [])

    def step(self, places: frozenset[Place], character: str) -> frozenset[Place]:
        """Where a character leads; empty where it does not fit."""
        found: set[Place] = set()
        for place in places:
            if place != self.end:
                found.update(self._follow(place, character))
        return frozenset(found)

    def _follow(self, place: Place, character: str) -> list[Place]:
        segment, count, node = place
        part, trie = self.segments[segment], self.tries[segment]
        if isinstance(part, Literal):
            child = trie.children[node].get(character)
            return [] if child is None else self.closure((segment, 0, child))
        after = trie.step(node, character)
        read = trie.prefix[node] + character
        text = read[: len(read) - len(trie.prefix[after])]  # what can belong to no stop literal any more
        if part.allowed is not None and any(c not in part.allowed for c in text):
            return []
        count += len(text)
        if part.most is not None and count > part.most:
            return []
        if after in trie.terminal:
            return self.closure((segment + 1, 0, 0)) if count >= part.least else []
        return self.closure((segment, count if part.most is not None else min(count, part.least), after))

    def alike(self, alphabet: Sequence[str]) -> list[int]:
        """For each character the first one of the alphabet that leads to the same places everywhere."""
        spelled = {c for trie in self.tries for prefix in trie.prefix for c in prefix}
        slots = [part.allowed for part in self.segments if isinstance(part, Slot)]
        first: dict[Any, int] = {}
        kinds = [c if c in spelled else tuple(allowed is None or c in allowed for allowed in slots) for c in alphabet]
        return [first.setdefault(kind, number) for number, kind in enumerate(kinds)]


@dataclass
class Automaton:
    """A deterministic automaton over tokens; state 0 is the start."""

    delta: Tensor
    """(S, V) int64: next state, or :data:`DEAD`."""
    accepting: Tensor
    """(S,) bool."""

    @property
    def states(self) -> int:
        return self.delta.shape[0]

    @property
    def vocabulary(self) -> int:
        return self.delta.shape[1]

    @cached_property
    def distance(self) -> Tensor:
        """(S,) int64: fewest tokens to an accepting state; :data:`NEVER` where there is no way."""
        far = torch.where(self.accepting, 0, NEVER)
        while True:
            # the extra entry is where dead tokens lead
            reached = torch.cat([far, far.new_tensor([NEVER])])[self.delta].amin(dim=1)
            nearer = torch.minimum(far, reached + 1)
            if torch.equal(nearer, far):
                return far
            far = nearer

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.delta.cpu().numpy()

    def walk(self, tokens: Sequence[int], state: int = 0) -> int:
        """State after some tokens, :data:`DEAD` where they do not fit."""
        for token in tokens:
            if state == DEAD:
                return DEAD
            state = int(self._rows[state, token])
        return state

    def accepts(self, tokens: Sequence[int]) -> bool:
        state = self.walk(tokens)
        return state != DEAD and bool(self.accepting[state])

    def trimmed(self) -> Automaton:
        """The same language, without states that the start does not reach or that reach no accepting one."""
        useful = self.distance < NEVER
        reached, frontier = {0}, [0]
        while frontier:
            after = {t for s in frontier for t in self.delta[s].unique().tolist() if t != DEAD and bool(useful[t])}
            frontier = sorted(after - reached)
            reached |= after
        kept = torch.tensor(sorted(reached))
        number = torch.full((self.states + 1,), DEAD)  # the last entry is that of DEAD
        number[kept] = torch.arange(len(kept))
        return Automaton(number[self.delta[kept]], self.accepting[kept])

    def to(self, device: torch.device | str) -> Automaton:
        return Automaton(self.delta.to(device), self.accepting.to(device))


def everything(vocabulary: int) -> Automaton:
    """The automaton that accepts all."""
    return Automaton(torch.zeros(1, vocabulary, dtype=torch.int64), torch.ones(1, dtype=torch.bool))


def compile_template(template: Template, texts: Sequence[str], end: int) -> Automaton:
    """The automaton of a template. ``texts`` are those of the tokens; an empty one can never be written.

    ``end`` is the end token: it is written where the format is met, and the state after it accepts whatever follows,
    which is nobody's text. Raises ``ValueError`` where no text of these tokens fits.
    """
    characters = Characters(template)
    alphabet = sorted({c for text in texts for c in text})
    place_of = {c: number for number, c in enumerate(alphabet)}
    alike = characters.alike(alphabet)
    states, table = {characters.start: 0}, []
    queue = deque([characters.start])
    while queue:
        places, row = queue.popleft(), [DEAD] * len(alphabet)
        for number, first in enumerate(alike):
            if first < number:
                row[number] = row[first]
                continue
            after = characters.step(places, alphabet[number])
            if after:
                if after not in states:
                    states[after] = len(states)
                    queue.append(after)
                row[number] = states[after]
        table.append(row)
    fits = [characters.end in places for places in states]
    steps = np.array(table, dtype=np.int64).reshape(len(states), len(alphabet))
    delta = torch.from_numpy(over_tokens(steps, [[place_of[c] for c in text] for text in texts]))
    done = len(states)
    delta[:, end] = torch.where(torch.tensor(fits), done, DEAD)
    delta = torch.cat([delta, torch.full((1, len(texts)), done)])
    made = Automaton(delta, torch.tensor([*fits, True]))
    if made.distance[0] == NEVER:
        raise ValueError("no text of these tokens fits the template")
    return made.trimmed()


def over_tokens(steps: np.ndarray, spelled: Sequence[Sequence[int]]) -> np.ndarray:
    """Steps over characters (S, A) as steps over tokens (S, V); ``spelled`` are the characters of each token."""
    longest = max((len(row) for row in spelled), default=0)
    letters = np.full((len(spelled), longest), -1, dtype=np.int64)
    for token, row in enumerate(spelled):
        letters[token, : len(row)] = row
    state = np.repeat(np.arange(len(steps))[:, None], len(spelled), axis=1)
    state[:, np.array([not row for row in spelled], dtype=bool)] = DEAD
    for column in letters.T:
        moving = (column >= 0) & (state != DEAD)
        state = np.where(moving, steps[np.where(moving, state, 0), np.where(column >= 0, column, 0)], state)
    return state


def token_texts(tokenizer: Any) -> list[str]:
    """What each token of a transformers tokenizer adds to a text; empty for special tokens and parts of a character.

    A token is decoded behind another one, as some tokenizers drop a space at the beginning of a text.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
    before = len(tokenizer.decode(anchor, **options))
    rows = [[*anchor, token] for token in range(len(tokenizer))]
    texts = [text[before:] for text in tokenizer.batch_decode(rows, **options)]
    return ["" if "\ufffd" in text else text for text in texts]


def tokenisations(text: str, texts: Sequence[str]) -> list[list[int]]:
    """Every sequence of tokens whose texts make up ``text``; their number grows with the length of the text."""
    if not text:
        return [[]]
    return [
        [token, *rest]
        for token, own in enumerate(texts)
        if own and text.startswith(own)
        for rest in tokenisations(text[len(own) :], texts)
    ]

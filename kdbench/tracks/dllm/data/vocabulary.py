"""The 48 symbols that generated problems are written in, one character each."""

from __future__ import annotations

EOS, MASK, SEP, QUERY, THINK, END_THINK = range(6)
OPS = 6
"""First of the ten symbols that name an operation."""
ITEMS = 16
"""First of the 32 items of lists; the digits come first, then ``+-*=;.``."""
ALPHABET = "$_|?<>" + "ABCDEFGHIJ" + "0123456789+-*=;." + "abcdefghijklmnop"
"""Symbol of each id; ``$`` is the end of a text and padding, ``_`` the mask, ``|`` what closes a prompt."""
SIZE = len(ALPHABET)
IDS = {symbol: number for number, symbol in enumerate(ALPHABET)}


def encode(text: str, length: int) -> list[int]:
    """Ids of a text, with ends up to ``length``. Raises ``ValueError`` for a longer text or unknown symbols.

    >>> encode("A1", 4)
    [6, 17, 0, 0]
    """
    if len(text) > length:
        raise ValueError(f"{text!r} has {len(text)} symbols, more than {length}")
    unknown = sorted(set(text) - set(IDS))
    if unknown:
        raise ValueError(f"{text!r} has symbols that are not in the vocabulary: {' '.join(unknown)}")
    return [IDS[symbol] for symbol in text] + [EOS] * (length - len(text))


def decode(ids: list[int]) -> str:
    """The text before the first end.

    >>> decode([6, 17, 0, 5])
    'A1'
    """
    text = "".join(ALPHABET[number] for number in ids)
    return text.split(ALPHABET[EOS], 1)[0]


def prompt(operation: int, text: str, length: int) -> list[int]:
    """Ids of a prompt of ``length``: the operation, the text, padding, and the symbol that closes it."""
    return [OPS + operation, *encode(text, length - 2), SEP]

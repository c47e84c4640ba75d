"""The vocabulary of the procedural problems: one token a word, the same for every task."""

from __future__ import annotations

from typing import Any

from kdbench.tracks.reasoning_rl.data.families import NAMES

CONTROL = (
    *("<q>", "<sol>", "<ref>", "</ref>", "<demo>", "</demo>", "<att>", "</att>", "<crit>", "</crit>"),
    *("<met>", "</met>", "<unmet>", "</unmet>", "<right>", "<wrong>", "<rule:0>", "<rule:1>"),
)
"""What begins and ends the parts of a prompt."""
WORDS = (
    *"0123456789+-*/=:;,?",
    *NAMES,
    *("ans", "ok", "no", "think", "add", "chain", "sort", "rev", "kth", "path"),
    *("has", "buys", "gives", "doubles", "shares", "rules", "first", "last", "least"),
    *("prog", "push", "mul", "mod", "swap"),
)


def tokenizer() -> Any:
    """The word-level tokenizer, as transformers sees it; a word that it does not know is ``<unk>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from kdbench.tracks.llm.networks.tokenizers import SPECIALS, UNKNOWN, wrap

    vocabulary = {token: place for place, token in enumerate((*SPECIALS, UNKNOWN, *CONTROL, *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.add_special_tokens([*SPECIALS, UNKNOWN])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(made)

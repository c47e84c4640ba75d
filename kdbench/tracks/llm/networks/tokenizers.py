"""Tokenizers: byte-level BPE, plain bytes and printable characters, made locally of the training data of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from kdbench.cache import Cache

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SPECIALS = (PAD, BOS, EOS)
SEP, UNKNOWN = "<sep>", "<unk>"
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""What the tokenizer ``chars`` knows: one token a character, all others are unknown."""
SIZES = {
    "bytes": 256 + len(SPECIALS),
    "chars": len(SPECIALS) + 2 + len(CHARACTERS),
    "bpe512": 512,
    "bpe1024": 1024,
    "bpe2048": 2048,
}
"""Vocabulary sizes, special tokens included."""
LEARN_FROM = 3_000_000
"""Characters of training text that merges are learned from at most."""


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE with single digits and a vocabulary of at most ``size``; the same texts give the same merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_limited(texts), trainer)
    return tokenizer


def characters() -> Tokenizer:
    """One token for each printable character of ASCII and the line break, ``<sep>``, and ``<unk>`` for the others."""
    vocabulary = {token: place for place, token in enumerate((*SPECIALS, SEP, UNKNOWN, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.add_special_tokens([*SPECIALS, SEP, UNKNOWN])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _limited(texts: Iterable[str]) -> Iterable[str]:
    left = LEARN_FROM
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers sees it, with the special tokens named."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def get(name: str, key: Any, texts: Callable[[], Iterable[str]], cache: Cache) -> PreTrainedTokenizerFast:
    """The tokenizer ``name`` of the data that ``key`` identifies; trained on ``texts()`` if not in the cache."""

    def make(folder: Path) -> None:
        tokenizer = characters() if name == "chars" else train(texts(), SIZES[name])
        tokenizer.save(str(folder / "tokenizer.json"))

    folder = cache.get("tokenizer", {"track": "llm", "tokenizer": name, "data": key}, make)
    return wrap(Tokenizer.from_file(str(folder / "tokenizer.json")))


def start_id(tokenizer: Any) -> int:
    """Token that every sequence begins with: ``bos``, or ``eos`` where there is no ``bos``."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(start)


def pad_id(tokenizer: Any) -> int:
    """Token that fills rows up; ``eos`` where the tokenizer has none (masks, not this id, say what is padding)."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

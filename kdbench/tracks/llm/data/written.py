"""Everyday instructions, and what SmolLM2-135M-Instruct answers: text that a pretrained model has written itself."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.task import seed_of
from kdbench.tracks.llm.data.encoding import encode
from kdbench.tracks.llm.data.instruct import Item, split_of
from kdbench.tracks.llm.data.specs import WrittenData
from kdbench.tracks.llm.generation import generate
from kdbench.tracks.llm.networks import smollm
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

SUBJECTS = {
    "animal": "cat dog horse cow owl whale ant bee frog bear fox goat lion mouse shark snake spider tiger wolf duck",
    "food": "bread cheese soup rice pasta salad apple honey pizza potato cake tea coffee egg butter bean carrot corn",
    "thing": "clock bicycle bridge candle chair ladder lamp mirror pencil radio rope train wheel window door map kite",
    "idea": "music winter friendship school sleep rain money sport history travel colour time love farming art peace",
}
"""What instructions are about."""
TEMPLATES = {
    "animal": (
        "What does a {} eat?",
        "Where does a {} live?",
        "Describe a {} in one sentence.",
        "Name one thing that a {} can do.",
        "How does a {} sleep?",
        "Why do people like the {}?",
    ),
    "food": (
        "How is {} made?",
        "What goes well with {}?",
        "Describe the taste of {}.",
        "Write one sentence about {}.",
        "Is {} healthy?",
        "When do people have {}?",
    ),
    "thing": (
        "What is a {} used for?",
        "Who invented the {}?",
        "Describe a {} to a child.",
        "Write a short line about a {}.",
        "What is a {} made of?",
        "How does a {} work?",
    ),
    "idea": (
        "Explain {} in one sentence.",
        "Why is {} important?",
        "Write a line of a poem about {}.",
        "Give one fact about {}.",
        "What is {}?",
        "Say something kind about {}.",
    ),
}
"""By what they are about."""
BATCH = 32
"""Instructions that are answered at once."""
_SENTENCE = re.compile(r"^.*?[.!?](?=\s|$)(?:.*[.!?](?=\s|$))?", re.DOTALL)


class Chat(Item):
    """An instruction as the pretrained model reads it, after its start token ``<|im_start|>``."""

    @property
    def prompt(self) -> str:
        return f"user\n{self.instruction}<|im_end|>\n<|im_start|>assistant\n"


def instructions(split: str) -> list[tuple[str, str]]:
    """All instructions of a split, each with what it is about, in a fixed random order; none is in two splits."""
    found = [
        (template.format(subject), about)
        for about, templates in TEMPLATES.items()
        for template in templates
        for subject in SUBJECTS[about].split()
    ]
    ordered = sorted(found, key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())
    return [pair for pair in ordered if split_of(pair[0]) == split]


def sentences(text: str) -> str:
    """The whole sentences that a text begins with; empty where it has none.

    >>> sentences("Yes. It is 3.5 m long! And when")
    'Yes. It is 3.5 m long!'
    """
    found = _SENTENCE.match(text.strip())
    return found[0] if found else ""


def write(data: WrittenData, split: str, cache: Cache) -> list[Chat]:
    """The items of a split: responses at ``data.temperature``, up to their last whole sentence.

    Raises ``JobError`` where there are fewer items with a whole sentence than the split has to have.
    """
    wanted = getattr(data, split)
    model, tokenizer = smollm.load_model(cache), smollm.load_tokenizer(cache)
    generator = torch.Generator().manual_seed(seed_of("llm", "written", split, data.seed) % 2**32)
    asked = instructions(split)
    items: list[Chat] = []
    for begin in range(0, len(asked), BATCH):
        part = [Chat(text, "", (), (), about, 1) for text, about in asked[begin : begin + BATCH]]
        for item, text in zip(part, _answers(model, tokenizer, part, data, generator), strict=True):
            if response := sentences(text):
                items.append(Chat(item.instruction, response, (response,), (1.0,), item.family, 1))
        if len(items) >= wanted:
            return items[:wanted]
    raise JobError(f"{data.kind} data have {len(items)} items of the split {split}, not {wanted}")


def _answers(model: Any, tokenizer: Any, items: list[Chat], data: WrittenData, generator: torch.Generator) -> list[str]:
    prompts = [[start_id(tokenizer), *ids] for ids in encode([item.prompt for item in items], tokenizer)]
    ends = {"eos": tokenizer.eos_token_id, "pad": pad_id(tokenizer)}
    options = {"max_new": data.max_new, "temperature": data.temperature, "generator": generator}
    written = generate(model, prompts, **ends, **options)
    texts: list[str] = tokenizer.batch_decode(written.tokens, skip_special_tokens=True)
    return texts

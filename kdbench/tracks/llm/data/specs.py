"""What the data of a task may be: one model a kind, with every field bounded. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel

CAUSAL = ("llama", "gpt2")
ENCODERS = ("encoder",)
"""Families of networks (``Net.family``) that a kind of data can be modelled with: its ``networks``."""

CPYTHON = "3.11.7"
"""Python release that the text corpus was taken from (its digest is pinned by the tasks)."""


class TextData(SpecModel):
    """Plain text with domain labels, cut into chunks of a fixed number of tokens."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["text"] = "text"
    domains: tuple[Literal["docs", "code", "facts", "arith"], ...] = ("docs", "code", "facts", "arith")
    """``docs``: language reference of CPython; ``code``: its standard library; ``facts``, ``arith``: procedural."""
    digest: str = ""
    """SHA-256 of the corpus of ``docs`` and ``code``; checked whenever it is read."""
    bytes_per_domain: int = Field(2_000_000, ge=2_000)
    """Documents are taken in a fixed random order until a domain has this many bytes."""
    chunk: int = Field(128, ge=8)
    """Tokens of a chunk, the leading ``<bos>`` included."""
    val: int = Field(128, ge=1)
    """Chunks of the validation split, evenly from the domains."""
    test: int = Field(256, ge=1)
    train: int | None = Field(None, ge=1)
    """Chunks of the training split; null: all."""
    persons: int = Field(200, ge=1, le=1600)
    """Size of the fictional knowledge base that ``facts`` speaks of."""
    noise: float = Field(0.0, ge=0, lt=1)
    """Share of training documents that are injected noise: shuffled words or boilerplate (``meta['noise']``)."""
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        """Teachers, initialisations and tokenizers know the clean corpus, whatever noise the task injects."""
        return self.model_dump(mode="json", exclude={"val", "test", "noise"})


FAMILIES = (
    "add",
    "add_steps",
    "subtract",
    "reverse",
    "sort_letters",
    "count_letter",
    "nth_word",
    "list_max",
    "list_sort",
    "list_dedupe",
    "lookup",
    "rewrite",
)
HELD_OUT = ("list_min", "reverse_words")
"""Families that no model is trained on: evaluation outside the distribution."""


class InstructData(SpecModel):
    """Procedural instructions with verifiable answers."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["instruct"] = "instruct"
    families: tuple[str, ...] = FAMILIES
    weights: dict[str, float] = {}
    """Relative frequency of families in training and evaluation; 1 where a family is not named."""
    train: int = Field(20_000, ge=1)
    val: int = Field(200, ge=1)
    test: int = Field(200, ge=1)
    ood: int = Field(60, ge=0)
    """Items of the held-out families in the test data."""
    difficulty: tuple[int, int] = (1, 2)
    """Range of the difficulty that each item draws from, 1 to 4: digits, letters, words, list lengths."""
    persons: int = Field(120, ge=1, le=1600)
    """Size of the fictional knowledge base: what the capacity gap comes from."""
    distractors: float = Field(0.15, ge=0, le=1)
    """Probability that an irrelevant sentence stands before or after the instruction."""
    length: int = Field(96, ge=16)
    """Largest number of tokens of prompt and response; longer items are an error, never cut."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> InstructData:
        known = (*FAMILIES, *HELD_OUT)
        for name in (*self.families, *self.weights):
            if name not in known:
                raise ValueError(f"unknown instruction family {name!r}; known: {', '.join(known)}")
        low, high = self.difficulty
        if not 1 <= low <= high <= 4:
            raise ValueError("difficulty is a range within 1 to 4, such as [1, 2]")
        return self

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test", "ood"})


class ReviewsData(SpecModel):
    """Procedural reviews: the class is the sentiment, the hidden aspect is the topic."""

    networks: ClassVar[tuple[str, ...]] = ENCODERS
    kind: Literal["reviews"] = "reviews"
    train: int = Field(4_000, ge=2)
    val: int = Field(400, ge=2)
    test: int = Field(1_000, ge=2)
    label_noise: float = Field(0.05, ge=0, lt=0.5)
    """Probability that a *training* label is flipped."""
    sentences: tuple[int, int] = (2, 4)
    """Range of the number of sentences."""
    length: int = Field(64, ge=8)
    """Tokens after which a text is cut."""
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class DocstringsData(SpecModel):
    """Docstrings of CPython's standard library: the class is the top-level module (a long tail)."""

    networks: ClassVar[tuple[str, ...]] = ENCODERS
    kind: Literal["docstrings"] = "docstrings"
    digest: str = ""
    """As in :class:`TextData`."""
    classes: int = Field(40, ge=2, le=60)
    """The modules with the most docstrings."""
    train: int | None = Field(None, ge=2)
    val: int = Field(300, ge=2)
    test: int = Field(600, ge=2)
    length: int = Field(64, ge=8)
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class HubTextData(SpecModel):
    """Text of a Hugging Face data set or of local files."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["hf-text"] = "hf-text"
    path: str
    """Hub name, folder of ``save_to_disk``, or file or folder of ``.jsonl``, ``.json``, ``.csv``, ``.parquet``."""
    config: str | None = None
    """Configuration of a data set of the hub, such as ``wikitext-103-raw-v1``."""
    revision: str | None = None
    splits: dict[Literal["train", "val", "test"], str] = {"train": "train", "val": "validation", "test": "test"}
    """Name of each split, slices such as ``train[:1%]`` included."""
    text: str = "text"
    """Column."""
    chunk: int = Field(512, ge=8)
    train: int | None = Field(None, ge=1)
    val: int = Field(128, ge=1)
    test: int = Field(512, ge=1)

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class HubInstructData(SpecModel):
    """Prompts and responses of a Hugging Face data set or of local files."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["hf-instruct"] = "hf-instruct"
    path: str
    config: str | None = None
    revision: str | None = None
    splits: dict[Literal["train", "val", "test"], str] = {"train": "train", "val": "validation", "test": "test"}
    prompt: str = "instruction"
    """Column of the instruction."""
    context: str | None = None
    """Column of an optional input that follows the instruction."""
    response: str = "response"
    length: int = Field(512, ge=16)
    """Items with more tokens are left out and counted, never cut."""
    train: int | None = Field(None, ge=1)
    val: int = Field(200, ge=1)
    test: int = Field(500, ge=1)

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


Data = Annotated[
    TextData | InstructData | ReviewsData | DocstringsData | HubTextData | HubInstructData,
    Field(discriminator="kind"),
]

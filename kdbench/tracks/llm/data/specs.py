"""What the data of a task may be: one model a kind, with every field bounded. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel

CAUSAL = ("llama", "gpt2")
ENCODERS = ("encoder",)
TAGGERS = ("tagger",)
"""Families of networks (``Net.family``) that a kind of data can be modelled with: its ``networks``."""

CPYTHON = "3.11.7"
"""Python release that the text corpus was taken from (its digest is pinned by the tasks)."""


Domain = Literal["docs", "code", "facts", "arith"]


class TextData(SpecModel):
    """Plain text with domain labels, cut into chunks of a fixed number of tokens."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["text"] = "text"
    domains: tuple[Domain, ...] = ("docs", "code", "facts", "arith")
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


class TextOodData(SpecModel):
    """Text of some domains that models learn, and text of other domains that they should notice is foreign."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["text-ood"] = "text-ood"
    inside: tuple[Domain, ...] = ("docs",)
    """Domains in the distribution: training, validation and the inner part of the test data."""
    pretraining: tuple[Domain, ...] = ("docs", "code", "facts", "arith")
    """Domains of the stage ``lm`` of a teacher, which knows more than its task; the stage ``sft`` reads ``inside``."""
    outside: tuple[Domain | Literal["shuffled"], ...] = ("facts", "code", "shuffled")
    """Domains out of the distribution, in the test data alone; ``shuffled``: words of ``inside`` in random order."""
    digest: str = ""
    """As in :class:`TextData`."""
    bytes_per_domain: int = Field(600_000, ge=2_000)
    chunk: int = Field(128, ge=8)
    train: int | None = Field(None, ge=1)
    val: int = Field(128, ge=1)
    """Chunks of ``inside``."""
    test: int = Field(128, ge=1)
    """Chunks of ``inside`` in the test data."""
    test_outside: int = Field(64, ge=1)
    """Chunks of each domain of ``outside`` in the test data."""
    persons: int = Field(200, ge=1, le=1600)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> TextOodData:
        both = set(self.inside) & set(self.outside)
        if both or not self.inside or not self.outside:
            raise ValueError(f"inside and outside need domains, and none in common (both have: {sorted(both)})")
        return self

    def text(self, domains: tuple[Domain, ...]) -> TextData:
        """Text of some domains."""
        shared = {name: getattr(self, name) for name in ("digest", "bytes_per_domain", "chunk", "persons", "seed")}
        return TextData(domains=domains, **shared)

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test", "test_outside", "outside"})


class LengthsData(TextData):
    """As :class:`TextData`, with probes of several lengths and pass keys to be found in them."""

    kind: Literal["lengths"] = "lengths"  # type: ignore[assignment]
    lengths: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)
    """Tokens of the probes, the leading ``<bos>`` included."""
    windows: int = Field(48, ge=1)
    """Places whose last tokens are scored, each with a context of every length."""
    stride: int = Field(32, ge=1)
    """Scored tokens of a window."""
    passkeys: int = Field(64, ge=1)
    """Pass keys of each length."""
    key_letters: int = Field(1, ge=1, le=9)
    """Letters of a pass key, out of 15."""
    passkey_share: float = Field(0.2, ge=0, lt=1)
    """Share of the training chunks that hold a pass key, its question and its answer."""

    @model_validator(mode="after")
    def _check_lengths(self) -> LengthsData:
        if min(self.lengths) <= self.stride:
            raise ValueError(f"lengths are more than stride = {self.stride}: the scored tokens need a context")
        return self

    def decides_teacher(self) -> dict[str, Any]:
        probes = {"val", "test", "noise", "lengths", "windows", "stride", "passkeys"}
        return self.model_dump(mode="json", exclude=probes)


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
PASSAGES = ("passage_value", "passage_who", "passage_report")
"""Families of long inputs and short answers."""


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
        known = (*FAMILIES, *HELD_OUT, *PASSAGES)
        for name in (*self.families, *self.weights):
            if name not in known:
                raise ValueError(f"unknown instruction family {name!r}; known: {', '.join(known)}")
        low, high = self.difficulty
        if not 1 <= low <= high <= 4:
            raise ValueError("difficulty is a range within 1 to 4, such as [1, 2]")
        return self

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test", "ood"})


class DistractorsData(InstructData):
    """As :class:`InstructData`, with irrelevant sentences that speak of what the instruction is about."""

    kind: Literal["instruct-distractors"] = "instruct-distractors"  # type: ignore[assignment]
    persons: int = Field(120, ge=2, le=1600)
    distractors: float = Field(0.5, ge=0, le=1)


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


class Author(SpecModel):
    """Training of the language model that writes texts of a task's classes, of the shape of the task's teacher."""

    steps: int = Field(600, ge=1)
    """Of 16 texts."""
    lr: float = Field(2e-3, gt=0)


class SeedDocstringsData(DocstringsData):
    """As :class:`DocstringsData`, of which training sees a few of each class and the teacher's side all (``pool``)."""

    kind: Literal["docstring-seeds"] = "docstring-seeds"  # type: ignore[assignment]
    classes: int = Field(30, ge=2, le=60)
    seeds: int = Field(5, ge=1)
    """Labelled texts of each class in the training data; ``train`` limits the pool that they are taken from."""
    author: Author = Author()
    """Who writes more of them on request: made with the teacher, which does not depend on it."""

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test", "author"})


class IclData(SpecModel):
    """Few-shot tasks that are made by procedure: demonstrations, and queries whose label only they tell."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["icl"] = "icl"
    train: int = Field(20_000, ge=1)
    """Tasks that models are trained on, with one query each."""
    val: int = Field(16, ge=1)
    """Tasks of the validation data; their rules are in no other split."""
    test: int = Field(60, ge=1)
    queries: int = Field(8, ge=1, le=64)
    """Queries of each validation and test task."""
    demonstrations: int = Field(8, ge=0, le=64)
    repeats: float = Field(0.3, ge=0, lt=1)
    """Probability that a demonstration of a training task is one of those before it: what copying is learned from."""
    classes: int = Field(2, ge=2, le=4)
    kinds: int = Field(1, ge=1, le=4)
    """Kinds of words that make a class; there are eight of adjectives and eight of nouns."""
    stories: int = Field(4_000, ge=0)
    """Plain texts of the same words, which teachers and initialisations are also pre-trained on."""
    sentences: int = Field(12, ge=6, le=64)
    """Sentences of a plain text; those after the first six repeat what the first six say."""
    length: int = Field(128, ge=16)
    """Largest number of tokens of a row; longer ones are an error, never cut."""
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> IclData:
        if self.classes * self.kinds > 8:
            raise ValueError("classes x kinds is at most 8: no kind of words belongs to two classes")
        return self

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test", "queries"})


class NerData(SpecModel):
    """Named entities in two procedural languages: labelled sentences of one, unlabelled sentences of the other."""

    networks: ClassVar[tuple[str, ...]] = TAGGERS
    kind: Literal["ner"] = "ner"
    train: int = Field(3_000, ge=1)
    """Labelled sentences of the source language."""
    unlabelled: int = Field(1_500, ge=1)
    """Sentences of the target language in the training data."""
    val: int = Field(300, ge=1)
    """Sentences of the target language; so are those of the test data."""
    test: int = Field(600, ge=1)
    names: int = Field(300, ge=10, le=1000)
    """Surnames, places and companies that there are, each."""
    shared: float = Field(0.3, ge=0, le=1)
    """Probability that a name is written alike in both languages."""
    moved: int = Field(3, ge=0, le=20)
    """Consonants, of 20, that the transliteration of all other names turns into another."""
    cognates: float = Field(0.5, ge=0, le=1)
    """Probability that another word is the same in both languages."""
    mixed: float = Field(0.2, ge=0, le=0.5)
    """Probability that a sentence, or a phrase of it, has the order of words that is usual in the other language."""
    typical: float = Field(0.9, ge=0, le=1)
    """Probability that a name has an ending that is typical of its kind."""
    length: int = Field(160, ge=32)
    """Largest number of tokens of a sentence; longer ones are an error, never cut."""
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class HubData(SpecModel):
    """A data set of the Hugging Face hub or local files: fields that all uses of it have."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    path: str
    """Hub name, folder of ``save_to_disk``, or file or folder of ``.jsonl``, ``.json``, ``.csv``, ``.parquet``."""
    config: str | None = None
    """Configuration of a data set of the hub, such as ``wikitext-103-raw-v1``."""
    revision: str | None = None
    splits: dict[Literal["train", "val", "test"], str] = {"train": "train", "val": "validation", "test": "test"}
    """Name of each split, slices such as ``train[:1%]`` included."""
    train: int | None = Field(None, ge=1)

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


class HubTextData(HubData):
    """Text of a Hugging Face data set or of local files."""

    kind: Literal["hf-text"] = "hf-text"
    text: str = "text"
    """Column."""
    domain: str | None = None
    """Column with the name of each row's domain; null: all text is of one."""
    chunk: int = Field(512, ge=8)
    val: int = Field(128, ge=1)
    test: int = Field(512, ge=1)


class HubInstructData(HubData):
    """Prompts and responses of a Hugging Face data set or of local files."""

    kind: Literal["hf-instruct"] = "hf-instruct"
    prompt: str = "instruction"
    """Column of the instruction."""
    context: str | None = None
    """Column of an optional input that follows the instruction."""
    response: str = "response"
    length: int = Field(512, ge=16)
    """Items with more tokens are left out and counted, never cut."""
    val: int = Field(200, ge=1)
    test: int = Field(500, ge=1)


class WrittenData(SpecModel):
    """Everyday instructions with the answers of SmolLM2-135M-Instruct, which writes them when a task is prepared."""

    networks: ClassVar[tuple[str, ...]] = CAUSAL
    kind: Literal["written"] = "written"
    train: int = Field(160, ge=1, le=352)
    val: int = Field(16, ge=1, le=40)
    test: int = Field(28, ge=1, le=34)
    max_new: int = Field(40, ge=4)
    """Tokens that are written at most; what follows the last whole sentence is dropped."""
    temperature: float = Field(0.7, ge=0)
    length: int = Field(96, ge=16)
    """Largest number of tokens of prompt and response."""
    seed: int = 0

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test"})


Data = Annotated[
    TextData
    | TextOodData
    | LengthsData
    | InstructData
    | DistractorsData
    | ReviewsData
    | DocstringsData
    | SeedDocstringsData
    | IclData
    | NerData
    | HubTextData
    | WrittenData
    | HubInstructData,
    Field(discriminator="kind"),
]

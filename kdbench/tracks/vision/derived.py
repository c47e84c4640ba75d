"""Derived data sets: what a task makes of its source. Free of torch, as all that suites are planned from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel


class LongTail(SpecModel):
    """Class ``c`` keeps ``largest * factor ** (-rank(c) / (C - 1))`` training images, rank by a seeded permutation."""

    kind: Literal["longtail"]
    factor: float = Field(10, gt=1)
    """Imbalance factor: images of the largest class over images of the smallest."""
    largest: int = Field(100, ge=2)
    """Student images of the largest class; the teacher's in proportion."""
    teacher: Literal["same", "balanced"] = "same"
    """Distribution of the teacher's own data."""


class FewLabel(SpecModel):
    """``labels`` labelled images per class; the other training images are unlabelled."""

    kind: Literal["fewlabel"]
    labels: int = Field(10, ge=1)


class FewClass(SpecModel):
    """The student's data have no image of the classes ``drop``; the teacher's have."""

    kind: Literal["fewclass"]
    drop: tuple[int, ...] = Field((7, 19), min_length=1)


class Noisy(SpecModel):
    """The fraction ``rate`` of the training labels is replaced by a uniformly drawn other class."""

    kind: Literal["noisy"]
    rate: float = Field(0.2, gt=0, lt=1)
    teacher: Literal["same", "clean"] = "same"
    """Labels that the teacher was trained with."""


class Webly(SpecModel):
    """No original data: 40 % known classes in D1-D4, 30 % unknown shapes, 30 % texture or background alone; no labels.

    Validation images are known classes in D1-D4, so that nothing but the test set is drawn from D0.
    """

    kind: Literal["webly"]
    pool: int = Field(4000, ge=10)


class Mismatch(SpecModel):
    """Labels for ``targets`` classes; the unlabelled images are of other classes with probability ``ratio``."""

    kind: Literal["ssl_mismatch"]
    targets: int = Field(6, ge=2)
    labels: int = Field(20, ge=1)
    """Labelled images per target class."""
    unlabeled: int = Field(1500, ge=1)
    ratio: float = Field(0.6, ge=0, le=1)
    """Share of unknown classes among the unlabelled images."""


class MultiDomain(SpecModel):
    """Training images from some of the domains D0-D4, test images from the held-out ones."""

    kind: Literal["multidomain"]
    domains: tuple[int, ...] = (0, 1, 2, 3)
    held_out: tuple[int, ...] = (4,)

    @model_validator(mode="after")
    def _disjoint(self) -> MultiDomain:
        named = (*self.domains, *self.held_out)
        if len(set(named)) != len(named) or not all(0 <= domain <= 4 for domain in named) or not self.held_out:
            raise ValueError("domains and held_out are disjoint, not empty and between 0 and 4")
        return self


class PseudoDomain(SpecModel):
    """Domains are hue sextant x noise level: domain ``h * len(noises) + n``; the last ``held_out`` are for the test."""

    kind: Literal["pseudodomain"]
    hues: int = Field(5, ge=2, le=6)
    noises: tuple[float, ...] = (0.04, 0.12)
    held_out: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _some_left(self) -> PseudoDomain:
        if self.held_out >= self.hues * len(self.noises):
            raise ValueError("held_out leaves no domain for training")
        return self


class Federated(SpecModel):
    """Clients with private images and a public proxy set to which each contributed some of its own."""

    kind: Literal["fed"]
    clients: int = Field(6, ge=2)
    images: int = Field(300, ge=1)
    """Private images per client."""
    partition: Literal["iid", "weak", "strong"] = "strong"
    """``iid``: all classes; ``weak``: ``classes`` per client, overlapping; ``strong``: disjoint classes."""
    classes: int = Field(6, ge=1)
    """Classes per client of the weak partition."""
    proxy: int = Field(600, ge=1)
    """Images of the proxy set, in equal parts from all clients."""

    @model_validator(mode="after")
    def _enough(self) -> Federated:
        if self.proxy > self.clients * self.images:
            raise ValueError("proxy is larger than all private data together")
        return self


SOURCES = ("shape", "texture", "hue", "quadrant", "digits", "rotated")
Target = Literal["label", "shape", "texture", "hue", "quadrant", "digits", "rotated"]


class Related(SpecModel):
    """A 30-way target with few labels; teachers for other label functions on other images (see ``teachers``)."""

    kind: Literal["related"]
    labels: int = Field(10, ge=1)
    """Labelled images per class."""
    unlabeled: int = Field(1500, ge=1)


class Pool(SpecModel):
    """A few labelled images and an unlabelled pool, both disjoint from the teacher's training data."""

    kind: Literal["pool"]
    labeled: int = Field(150, ge=1)
    pool: int = Field(3000, ge=1)


class Canvas(SpecModel):
    """Images on a black canvas: at its centre for the student and the validation, shifted for the test.

    The canvas has ``size`` pixels and a margin of ``reach`` on each side of the image. Shifts are whole pixels, uniform
    up to ``reach`` in both directions. The teacher learns from ``copies`` shifted copies of each image.
    """

    kind: Literal["canvas"]
    reach: int = Field(4, ge=1)
    copies: int = Field(4, ge=1)


Derive = Annotated[
    LongTail
    | FewLabel
    | FewClass
    | Noisy
    | Webly
    | Mismatch
    | MultiDomain
    | PseudoDomain
    | Federated
    | Related
    | Pool
    | Canvas,
    Field(discriminator="kind"),
]
SHAPETEX_ONLY = ("webly", "ssl_mismatch", "multidomain", "pseudodomain", "related")

"""What a vision task is: data, teacher, student. Free of torch, so that suites are planned from it alone."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdbench.errors import Problem
from kdbench.spec import Metric, Recipe, SpecModel, TaskSpec, digest

DATA_VERSION = 1
"""Bumped by hand when the generators give other images or splits."""
TEACHER_VERSION = 1
"""Bumped by hand when the recipe of teachers changes."""

ARCH = re.compile(r"(rn\(\d+,\d+\)|vit\(\d+,\d+,\d+\)|mixer\(\d+,\d+\)|hf:\S.*)")
"""Architectures: ``rn(w,n)``, ``vit(d,L,h)``, ``mixer(d,L)`` or ``hf:`` with a folder or name of transformers."""

SHAPETEX_CLASSES = 30


# --- derived data sets ------------------------------------------------------------------------------------------------


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


Derive = Annotated[
    LongTail | FewLabel | FewClass | Noisy | Webly | Mismatch | MultiDomain | PseudoDomain | Federated | Related | Pool,
    Field(discriminator="kind"),
]
SHAPETEX_ONLY = ("webly", "ssl_mismatch", "multidomain", "pseudodomain", "related")


# --- data -------------------------------------------------------------------------------------------------------------


class DataSpec(SpecModel):
    """Images and their splits; equal specifications give equal bytes."""

    source: Literal["digits16", "shapetex", "mnist5k", "hf"]
    seed: int = Field(0, ge=0)
    """Of the generator and of every split and derivation."""
    size: int = Field(16, ge=8, le=1024)
    """Height and width in pixels."""
    teacher: int | None = Field(None, ge=1)
    """Images of the teacher's training data; null: all there are."""
    train: int | None = Field(None, ge=1)
    """Images of the student's training data, a part of the teacher's; null: all of them."""
    val: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)
    ood: int = Field(0, ge=0)
    """Test images per shifted domain D1-D4 of shapetex; 0: none."""
    texture: Literal["default", "coarse"] = "default"
    """Spatial frequency of shapetex textures: U(3.5, 4.8) or U(1.8, 2.4)."""
    derive: Derive | None = None
    """How the training data are derived from the source; null: as they are."""
    path: str = ""
    """``hf``: name on the hub or a local folder, for ``datasets.load_dataset``."""
    config: str | None = None
    """``hf``: name of the configuration."""
    revision: str = "main"
    """``hf``: commit, tag or branch of a hub data set; ``digest`` is what pins its content."""
    image: str = "image"
    """``hf``: column with the images."""
    label: str = "label"
    """``hf``: column with the class numbers."""
    splits: dict[Literal["train", "val", "test"], str] = {"train": "train"}
    """``hf``: names of the data set's own splits; a missing val or test part is a stratified fifth of train each."""
    digest: str | None = None
    """``RECIPE:CONTENT``, both 16 hexadecimal digits: the digest that the content must have. It is checked when the
    data are loaded; a pin whose RECIPE is not that of the other fields belongs to other data and does not apply."""

    @field_validator("digest")
    @classmethod
    def _pin(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{16}:[0-9a-f]{16}", value):
            raise ValueError("a pin is RECIPE:CONTENT, each 16 hexadecimal digits, or null")
        return value

    @model_validator(mode="after")
    def _complete(self) -> DataSpec:
        if self.source == "hf" and not self.path:
            raise ValueError("source hf needs path: a folder or the name of a data set")
        if self.source == "shapetex":
            missing = [name for name in ("teacher", "train", "val", "test") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"shapetex is generated: say how many images {' and '.join(missing)} has")
            if self.derive is None and (self.train or 0) > (self.teacher or 0):
                raise ValueError("train is a part of teacher, so it cannot be larger")
        elif self.ood:
            raise ValueError(f"only shapetex has shifted domains; set ood to 0 for {self.source}")
        if self.source == "digits16" and self.size != 16:
            raise ValueError("digits16 has 16 x 16 pixels")
        if self.source != "shapetex" and self.derive is not None and self.derive.kind in SHAPETEX_ONLY:
            raise ValueError(f"{self.derive.kind} can be derived from shapetex only")
        if isinstance(self.derive, Mismatch) and self.derive.targets >= SHAPETEX_CLASSES:
            raise ValueError("ssl_mismatch needs at least one class that is not a target")
        return self

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the content."""
        return {"version": DATA_VERSION, **self.model_dump(mode="json", exclude={"digest"})}

    def pin(self) -> str | None:
        """Digest that the content must have, or None where nothing is pinned for these fields."""
        if self.digest is None:
            return None
        recipe, content = self.digest.split(":")
        return content if recipe == digest(self.recipe()) else None

    def teacher_recipe(self, target: Target = "label") -> dict[str, Any]:
        """Everything that decides a teacher's training data: tasks that agree here share their teachers."""
        keep = {"source", "seed", "size", "teacher", "texture"}
        if self.source == "hf":
            keep |= {"path", "config", "revision", "image", "label", "splits"}
        recipe = {"version": DATA_VERSION, "target": target, **self.model_dump(mode="json", include=keep)}
        derive = self.derive
        if isinstance(derive, LongTail) and derive.teacher == "same":
            recipe["derive"] = {"kind": derive.kind, "factor": derive.factor}
        elif isinstance(derive, Noisy) and derive.teacher == "same":
            recipe["derive"] = {"kind": derive.kind, "rate": derive.rate}
        elif isinstance(derive, Mismatch):
            recipe["derive"] = {"kind": derive.kind, "targets": derive.targets}
        elif isinstance(derive, MultiDomain):
            recipe["derive"] = {"kind": derive.kind, "domains": list(derive.domains)}
        elif isinstance(derive, PseudoDomain):
            recipe["derive"] = derive.model_dump(mode="json")
        return recipe


# --- models -----------------------------------------------------------------------------------------------------------


def check_arch(arch: str) -> str:
    """The architecture without spaces. Raises ``ValueError`` for one that the track does not have."""
    text = arch if arch.startswith("hf:") else arch.replace(" ", "")
    if not ARCH.fullmatch(text):
        raise ValueError(
            f"{arch!r} is no architecture of this track; expected rn(width,blocks), vit(width,depth,heads), "
            "mixer(width,depth) or hf:FOLDER"
        )
    return text


class StudentSpec(SpecModel):
    """The network that is trained and evaluated."""

    arch: str = "rn(6,1)"
    pretrained: bool = False
    """``hf:`` only: start from the saved weights instead of a fresh initialisation."""

    _arch = field_validator("arch")(check_arch)


class TeacherSpec(SpecModel):
    """A trained network; trained once by the track's recipe, or loaded where ``arch`` starts with ``hf:``."""

    arch: str = "rn(24,1)"
    steps: int = Field(900, ge=1)
    """Optimizer steps of its training."""
    target: Target = "label"
    """Label function it is trained for; anything but ``label`` is a source of the ``related`` data set."""

    seed: int | None = Field(None, ge=0)
    """Of its initialisation and batches; null: ``teacher_seed`` of the task. Members of an ensemble differ by it."""

    _arch = field_validator("arch")(check_arch)


TEACHER_RECIPES: dict[str, Recipe] = {
    "rn": Recipe(optimizer="sgd", lr=0.1, schedule="onecycle", weight_decay=5e-4, batch_size=64),
    "vit": Recipe(optimizer="adamw", lr=2e-3, schedule="cosine", warmup=0.1, weight_decay=0.05, batch_size=64),
    "mixer": Recipe(optimizer="adamw", lr=3e-3, schedule="cosine", warmup=0.1, weight_decay=0.05, batch_size=64),
}
"""Training of teachers by family of the architecture; with random rolls by up to 2 pixels."""

UNIT = (0.0, 1.0)


class VisionSpec(TaskSpec):
    """A fully resolved vision task."""

    headline: Metric = Metric(name="top1", bounds=UNIT)
    data: DataSpec
    teacher: TeacherSpec | None = None
    teachers: dict[str, TeacherSpec] = {}
    """Further teachers, by the name that ``task.teacher(name)`` takes."""
    student: StudentSpec = StudentSpec()
    augment: Literal["none", "roll"] = "none"
    """Default augmentation of ``task.train_loader``: none, so that teacher outputs are computed once and shared, or
    a random cyclic shift of each image by up to 2 pixels."""

    @model_validator(mode="after")
    def _fill(self) -> VisionSpec:
        if not self.metrics:
            object.__setattr__(self, "metrics", self._official_metrics())
        related = isinstance(self.data.derive, Related)
        for name, teacher in self.teachers.items():
            if teacher.target != "label" and not related:
                raise ValueError(f"teachers.{name}: target {teacher.target!r} exists for related data only")
        if "default" in self.teachers:
            raise ValueError("teachers.default: this name is taken by teacher")
        return self

    def _official_metrics(self) -> tuple[Metric, ...]:
        """Secondary metrics that this task can have."""
        low = {"direction": "min", "bounds": (0.0, None)}
        metrics = [
            Metric(name="macro_top1", bounds=UNIT),
            Metric(name="nll", unit="nats", **low),
            Metric(name="ece", direction="min", bounds=UNIT),
            Metric(name="brier", direction="min", bounds=(0.0, 2.0)),
        ]
        if self.teacher is not None:
            metrics += [Metric(name="agreement", bounds=UNIT), Metric(name="kl_teacher", unit="nats", **low)]
        if self.data.ood:
            metrics.append(Metric(name="ood_top1", bounds=UNIT))
        derive = self.data.derive
        if isinstance(derive, LongTail):
            metrics += [Metric(name=f"{part}_top1", bounds=UNIT) for part in ("head", "mid", "tail")]
        if isinstance(derive, FewClass):
            metrics.append(Metric(name="omitted_top1", bounds=UNIT))
        if isinstance(derive, MultiDomain | PseudoDomain):
            metrics.append(Metric(name="worst_domain_top1", bounds=UNIT))
        return tuple(metrics)

    def all_teachers(self) -> dict[str, TeacherSpec]:
        """Every teacher by name, ``default`` first."""
        return ({"default": self.teacher} if self.teacher is not None else {}) | self.teachers

    def teacher_recipe(self, name: str) -> dict[str, Any]:
        """Everything that decides the weights of a trained teacher."""
        teacher = self.all_teachers()[name]
        return {
            "track": "vision",
            "version": TEACHER_VERSION,
            "data": self.data.teacher_recipe(teacher.target),
            "arch": teacher.arch,
            "steps": teacher.steps,
            "seed": self.teacher_seed if teacher.seed is None else teacher.seed,
        }

    def teacher_key(self) -> str | None:
        needs = self.teacher_needs()
        return digest([key for _, key, _ in needs]) if needs else None

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        return [
            ("teacher", self.teacher_recipe(name), f"{teacher.arch} for {teacher.target} on {self.data.source}")
            for name, teacher in self.all_teachers().items()
            if not teacher.arch.startswith("hf:")
        ]

    def problems(self) -> list[Problem]:
        found = [
            Problem(self.name, f"package {package!r} is not installed", f"pip install {package}")
            for package in self.requires
            if importlib.util.find_spec(package) is None
        ]
        places = {"data.path": self.data.path} if self.data.source == "hf" else {}
        archs = {"student.arch": self.student.arch}
        for name, teacher in self.all_teachers().items():
            archs["teacher.arch" if name == "default" else f"teachers.{name}.arch"] = teacher.arch
        places |= {field: arch.removeprefix("hf:") for field, arch in archs.items() if arch.startswith("hf:")}
        for field, path in places.items():
            if path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
                hint = "a path starts with /, ./, ../ or ~; everything else is a name on the hub"
                found.append(Problem(f"{self.name}: {field}", f"there is no folder {path}", hint))
        return found

"""What a vision task is: data, teacher, student. Free of torch, so that suites are planned from it alone."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from kdbench.errors import Problem
from kdbench.spec import Metric, Recipe, SpecModel, TaskSpec, digest
from kdbench.tracks.vision.derived import (
    SHAPETEX_ONLY,
    Canvas,
    Derive,
    FewClass,
    LongTail,
    Mismatch,
    MultiDomain,
    Noisy,
    PseudoDomain,
    Related,
    Target,
)

DATA_VERSION = 1
"""Bumped by hand when the generators give other images or splits."""
TEACHER_VERSION = 1
"""Bumped by hand when the recipe of teachers changes."""
TABLE_VERSION = 1
"""Bumped by hand when the trainings for tables of accuracies change."""

ARCH = re.compile(
    r"rn\(\d+,\d+(,\d+,\d+)?\)|vit\(\d+,\d+,\d+\)|mixer\(\d+,\d+\)|effnet_lite0\(\d+\)|hf:\S.*"
    r"|resnet\(\d+(,\d+)?\)|wrn\(\d+,\d+\)|(vgg|mobilenetv2|shufflenetv2)\(\d+\)"
)
"""Architectures: ``rn(w,n)`` or ``rn(w,a,b,c)``, ``vit(d,L,h)``, ``mixer(d,L)``, ``effnet_lite0(R)``, the field's
networks for images of 32 pixels (``resnet(d)``, ``resnet(d,4)``, ``wrn(d,k)``, ``vgg(d)``, ``mobilenetv2(PERCENT)``,
``shufflenetv2(PERCENT)``), or ``hf:`` with a folder or name of transformers."""
PRETRAINED = ("effnet_lite0",)
"""Families whose teachers are pretrained on ImageNet: all but the last layer is as it comes."""

SHAPETEX_CLASSES = 30


# --- data -------------------------------------------------------------------------------------------------------------


class DataSpec(SpecModel):
    """Images and their splits; equal specifications give equal bytes."""

    source: Literal["digits16", "shapetex", "mnist5k", "pictures", "hf"]
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
    """``hf``: names of the data set's own splits; a missing val or test part is a stratified share of train each."""
    held: float = Field(0.2, gt=0, lt=0.5)
    """``hf``: the share of train that a missing val or test part has."""
    stream: bool = False
    """``hf``: images stay in their files and are decoded batch by batch, for data that do not fit into memory. The
    shorter side is brought to 8/7 of ``size``, and the centre is cut out."""
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
        if self.stream and self.source != "hf":
            raise ValueError("stream is for source hf; the other sources fit into memory")
        if isinstance(self.derive, Canvas) and self.source not in ("digits16", "mnist5k"):
            raise ValueError("canvas can be derived from digits16 and mnist5k only")
        if self.inner() < 8:
            raise ValueError(f"a margin of {self.size - self.inner()} pixels leaves nothing of {self.size}")
        if self.source == "digits16" and self.inner() != 16:
            raise ValueError("digits16 has 16 x 16 pixels")
        if self.source != "shapetex" and self.derive is not None and self.derive.kind in SHAPETEX_ONLY:
            raise ValueError(f"{self.derive.kind} can be derived from shapetex only")
        if isinstance(self.derive, Mismatch) and self.derive.targets >= SHAPETEX_CLASSES:
            raise ValueError("ssl_mismatch needs at least one class that is not a target")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Data in memory are what they were before there were others, so that tasks keep their identity and pins."""
        unused = {"held": 0.2, "stream": False}
        return {name: value for name, value in dump(self).items() if name not in unused or value != unused[name]}

    def inner(self) -> int:
        """Height and width of the source's images in pixels, without the margin of a canvas."""
        return self.size - 2 * self.derive.reach if isinstance(self.derive, Canvas) else self.size

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
            keep |= {"path", "config", "revision", "image", "label", "splits", "held", "stream"}
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
        elif isinstance(derive, PseudoDomain | Canvas):
            recipe["derive"] = derive.model_dump(mode="json")
        return recipe


# --- models -----------------------------------------------------------------------------------------------------------


def check_arch(arch: str) -> str:
    """The architecture without spaces. Raises ``ValueError`` for one that the track does not have."""
    text = arch if arch.startswith("hf:") else arch.replace(" ", "")
    if not ARCH.fullmatch(text):
        raise ValueError(
            f"{arch!r} is no architecture of this track; expected rn(width,blocks), rn(width,blocks,blocks,blocks), "
            "vit(width,depth,heads), mixer(width,depth), effnet_lite0(resolution), resnet(depth), wrn(depth,times), "
            "vgg(depth), mobilenetv2(percent), shufflenetv2(percent) or hf:FOLDER"
        )
    return text


class StudentSpec(SpecModel):
    """The network that is trained and evaluated."""

    arch: str = "rn(6,1)"
    pretrained: bool = False
    """``hf:`` only: start from the saved weights instead of a fresh initialisation."""

    _arch = field_validator("arch")(check_arch)


UNUSED = ("mixup", "smoothing", "recipe", "augment")
"""Fields of a teacher that are left out of its recipe where they are at their defaults."""


class TeacherSpec(SpecModel):
    """A trained network; trained once by the track's recipe, or loaded where ``arch`` starts with ``hf:``.

    Of an ``effnet_lite0``, which is pretrained on ImageNet, the last layer alone is fitted to the task.
    """

    arch: str = "rn(24,1)"
    steps: int = Field(900, ge=1)
    """Optimizer steps of its training."""
    target: Target = "label"
    """Label function it is trained for; anything but ``label`` is a source of the ``related`` data set."""

    seed: int | None = Field(None, ge=0)
    """Of its initialisation and batches; null: ``teacher_seed`` of the task. Members of an ensemble differ by it."""
    mixup: float = Field(0.0, ge=0)
    """Images and labels of its training are mixed in pairs with shares from Beta(mixup, mixup); 0: not at all."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the uniform distribution in the targets of its training."""
    recipe: Recipe | None = None
    """Of its training; null: the track's for its family."""
    augment: Literal["roll", "crop-flip"] | None = None
    """Augmentation of its training, as ``augment`` of the task; null: roll."""

    _arch = field_validator("arch")(check_arch)

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Teachers of hard labels are what they were before there were others, so that tasks keep their identity."""
        return {name: value for name, value in dump(self).items() if value or name not in UNUSED}


class SearchSpec(SpecModel):
    """A space of students ``rn(w,a,b,c)``, and which of them are trained for a table of accuracies."""

    widths: tuple[int, ...] = Field((4, 6, 8), min_length=1)
    depths: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    """Blocks that each of the three stages may have."""
    max_parameters: int | None = Field(30_000, ge=1)
    """Networks with more parameters are not part of the space; null: no cap."""
    max_macs: int | None = Field(None, ge=1)
    """As ``max_parameters``, of multiply-adds per image."""
    table: int = Field(20, ge=3)
    """Networks of the space, drawn at random, whose accuracies are in the table."""
    steps: int = Field(200, ge=1)
    """Optimizer steps of each training for the table."""
    seed: int = Field(0, ge=0)
    """Of the draw and of the trainings."""


CIFAR = Recipe(optimizer="sgd", lr=0.05, schedule="multistep", weight_decay=5e-4, batch_size=64)
"""Of CIFAR since Tian et al., ICLR 2020; 240 epochs. The rate of mobile networks is a fifth."""
TEACHER_RECIPES: dict[str, Recipe] = {
    **dict.fromkeys(("resnet", "wrn", "vgg"), CIFAR),
    **dict.fromkeys(("mobilenetv2", "shufflenetv2"), CIFAR.model_copy(update={"lr": 0.01})),
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
    search: SearchSpec | None = None
    """Space from which methods that search choose the student; null: none."""
    augment: Literal["none", "roll", "crop-flip", "resized-flip"] = "none"
    """Default augmentation of ``task.train_loader``: none, so that teacher outputs are computed once and shared; a
    random cyclic shift of each image by up to 2 pixels; a shift by up to 4 pixels over a black border and a random
    mirroring (photographs alone); of streamed data, a random window of 8 to 100 % of the area, mirrored or not."""

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
        if self.data.stream:
            arches = [teacher.arch for teacher in self.all_teachers().values()]
            if not all(arch.startswith("hf:") for arch in arches):
                raise ValueError("teachers of streamed data are not trained here: they are hf: networks")
            if self.augment not in ("none", "resized-flip"):
                raise ValueError("augment of streamed data is none or resized-flip")
        elif self.augment == "resized-flip":
            raise ValueError("augment: resized-flip needs the original pictures: data.stream")
        if self.augment == "crop-flip" and self.data.source not in ("hf", "pictures"):
            raise ValueError(f"mirrored images of {self.data.source} are of other classes: augment is none or roll")
        if self.search is not None and self.teacher is None:
            raise ValueError("search needs a teacher: its table holds accuracies of distilled networks")
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
            **{name: value for name, value in teacher.model_dump(mode="json").items() if name in UNUSED},
        }

    def table_recipe(self) -> dict[str, Any]:
        """Everything that decides the accuracies in the table of a search space."""
        assert self.search is not None
        return {
            "track": "vision",
            "version": TABLE_VERSION,
            "data": self.data.recipe(),
            "teacher": self.teacher_recipe("default"),
            "recipe": self.recipe.model_dump(mode="json"),
            "augment": self.augment,
            "search": self.search.model_dump(mode="json"),
        }

    def identity(self) -> dict[str, Any]:
        """As of every task; tasks without a search space are what they were before there were any."""
        identity = super().identity()
        return identity if self.search is not None else {k: v for k, v in identity.items() if k != "search"}

    def teacher_key(self) -> str | None:
        needs = self.teacher_needs()
        return digest([key for _, key, _ in needs]) if needs else None

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        needs = [
            ("teacher", self.teacher_recipe(name), f"{teacher.arch} for {teacher.target} on {self.data.source}")
            for name, teacher in self.all_teachers().items()
            if not teacher.arch.startswith("hf:")
        ]
        if self.search is not None:
            needs.append(("table", self.table_recipe(), f"accuracies of {self.search.table} networks"))
        return needs

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

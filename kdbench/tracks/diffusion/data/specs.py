"""What the data of a task are, one model a kind. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel


class DataSpec(SpecModel):
    """Base of all kinds; equal specifications give equal bytes."""

    seed: int = Field(0, ge=0)
    """Of the generator and of every split."""

    def decides_teacher(self) -> dict[str, Any]:
        """What of it a teacher's weights depend on: all but what is only evaluated on."""
        return self.model_dump(mode="json", exclude={"val", "test"})


class PointsData(DataSpec):
    """Mixtures of Gaussians in the plane, whose scores are known."""

    kind: Literal["points"] = "points"
    layout: Literal["ring", "grid", "checker"] = "ring"
    """A ring of 8 in four classes, a grid of 25 with unequal weights, or the 32 dark squares of a checkerboard."""
    scale: float = Field(1.0, gt=0)
    """Factor of all coordinates; at 1 a coordinate has a standard deviation of 1.2 to 1.5."""
    train: int = Field(10000, ge=16)
    val: int = Field(2000, ge=16)
    test: int = Field(5000, ge=16)


class Judges(SpecModel):
    """Classifiers that score samples, reward them or give features to a discriminator."""

    steps: int = Field(300, ge=1)
    """Of training each."""
    width: int = Field(16, ge=4, multiple_of=4)
    """Channels of the first layer."""
    batch_size: int = Field(64, ge=8)


class JudgedData(DataSpec):
    """Data whose samples classifiers look at."""

    judges: Judges = Judges()

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"val", "test", "judges"})

    def roles(self) -> tuple[str, ...]:
        """Judges that there are: the evaluator, two whose features methods may use, and one of taste."""
        return ("evaluator", "labels", "rotation", "taste")

    def judges_of(self, role: str) -> Judges:
        """The network of a role: the evaluator's is as wide as ``judges`` says, others are wider."""
        if role == "evaluator":
            return self.judges
        return self.judges.model_copy(update={"width": 3 * self.judges.width // 2 // 4 * 4})

    def judge_key(self, role: str) -> dict[str, Any]:
        """What the judge of a role is found by."""
        return {"data": self.decides_teacher(), "judge": self.judges_of(role).model_dump(mode="json"), "role": role}

    def judge_keys(self) -> list[dict[str, Any]]:
        """Of all judges that are made before jobs."""
        return [self.judge_key(role) for role in self.roles()]


class DigitsData(JudgedData):
    """Handwritten digits of scikit-learn, 1797 real pictures of 8 x 8 pixels: half of them are for training."""

    kind: Literal["digits"] = "digits"
    size: Literal[8, 16] = 8
    """Height and width; 16: enlarged (bilinear)."""
    train: int | None = Field(None, ge=20)
    """Training pictures; null: all 898."""
    test: int | None = Field(None, ge=20)
    """Test pictures; null: all 674."""


class AttributesData(JudgedData):
    """Digits drawn anew on 16 x 16 pixels as a prompt of six tokens says."""

    kind: Literal["attributes"] = "attributes"
    train: int = Field(6000, ge=16)
    val: int = Field(400, ge=16)
    test: int = Field(2000, ge=16)
    judges: Judges = Judges(steps=600)
    concepts: tuple[str, ...] = ("rotated-4", "mirrored-7", "composed-5-4")
    """Glyphs that no picture has, each with a word of its own: ``rotated-D``, ``mirrored-D`` or ``composed-D-D``."""

    def roles(self) -> tuple[str, ...]:
        return (*super().roles(), *(("glyphs",) if self.concepts else ()))


class EditData(DataSpec):
    """Pictures of digits of 16 x 16 pixels, instructions, and what exactly they ask for."""

    kind: Literal["edit"] = "edit"
    train: int = Field(6000, ge=16)
    val: int = Field(256, ge=16)
    test: int = Field(1000, ge=16)
    effects: tuple[str, ...] = Field(
        ("keep", "dilate", "erode", "blur", "invert", "stripes", "gradient", "mirror", "flip", "quantize", "shadow"),
        min_length=2,
    )
    """What the pictures are asked for: names in :mod:`kdbench.tracks.diffusion.data.effects`."""
    unseen: tuple[str, ...] = ("edge", "checker", "halo", "rotate", "shear")
    """Effects with an instruction of their own that no teacher has learned."""

    @model_validator(mode="after")
    def _distinct(self) -> EditData:
        names = (*self.effects, *self.unseen)
        if len(set(names)) < len(names):
            raise ValueError(f"every effect is named once, not {list(names)}")
        return self


class SrData(DataSpec):
    """Patches of photographs, and what is left of them at a low resolution."""

    kind: Literal["sr"] = "sr"
    size: int = Field(32, ge=32, le=128, multiple_of=32)
    """Pixels of a side of a patch."""
    factor: Literal[2, 4, 8] = 8
    """How many times smaller the sides are at the low resolution."""
    blur: float = Field(0.4, ge=0, le=2)
    """Standard deviation of the blur before, in pixels of the low resolution."""
    noise: float = Field(0.02, ge=0, le=1)
    """Standard deviation of the noise after, of pixels in [-1, 1]."""
    step: float = Field(0.04, ge=0, le=1)
    """Least step that coefficients of compression are rounded to, of pixels in [-1, 1]; 0: no compression."""
    stride: int = Field(8, ge=1)
    """Pixels between training patches; those of validation and test do not overlap."""
    detail: float = Field(12.0, ge=0)
    """Least standard deviation of a patch, of 255: flat ones say nothing about resolution."""
    train: int | None = Field(None, ge=1)
    """Patches, evenly over the region; null: all there are."""
    val: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class CodesData(JudgedData):
    """Digits of 16 x 16 pixels as sequences of codes."""

    kind: Literal["codes"] = "codes"
    size: Literal[16] = 16
    """Pixels of a side; a quarter of it are the codes of a row."""
    train: int | None = Field(None, ge=20)
    """Training pictures; null: all 898."""
    test: int | None = Field(None, ge=20)
    """Test pictures; null: all 674."""
    places: tuple[int, ...] | None = Field(None, min_length=2, max_length=3)
    """Places of the grid, in raster order, whose codes alone are the sequence; null: all. Sequences of two or three
    codes can all be counted."""
    reference: int = Field(4000, ge=16)
    """Sequences of the teacher that pairs of codes are compared with."""

    def as_digits(self) -> DigitsData:
        """The same pictures: what decoded sequences are scored as."""
        return DigitsData(seed=self.seed, size=self.size, train=self.train, test=self.test, judges=self.judges)

    def judge_keys(self) -> list[dict[str, Any]]:
        return self.as_digits().judge_keys() if self.places is None else []

    def decides_teacher(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"test", "judges", "reference"})


class ImagesData(DataSpec):
    """Pictures of a folder or of a data set of the hub, for pretrained teachers."""

    kind: Literal["images"] = "images"
    path: str
    """A folder (starts with /, ./, ../ or ~) that ``datasets`` reads, or a name on the hub."""
    config: str | None = None
    revision: str | None = None
    image: str = "image"
    """Column of the pictures."""
    label: str | None = None
    """Column of the classes, for teachers that are asked for one."""
    text: str | None = None
    """Column of the texts, for teachers that are asked for these."""
    parts: dict[Literal["train", "test"], str] = {"train": "train", "test": "test"}
    """Names of the parts in the data set; without ``test`` the last rows of ``train`` are held out."""
    size: int = Field(32, ge=8)
    """Height and width in pixels."""
    train: int = Field(10000, ge=1)
    """Pictures that are kept in memory, as the teacher's states, for methods that learn from data."""
    val: int = Field(1000, ge=2)
    """The last rows of the training part."""
    test: int = Field(10000, ge=2)
    features: str
    """A vision model of transformers, in a folder or on the hub, whose pooled features the distance is taken of."""

    @model_validator(mode="after")
    def _asked(self) -> ImagesData:
        if self.label is not None and self.text is not None:
            raise ValueError("a picture is asked for by its label or by a text, not by both")
        if "train" not in self.parts:
            raise ValueError("parts needs one for train")
        return self

    def decides_teacher(self) -> dict[str, Any]:
        """Nothing: the teacher is pretrained."""
        return {"kind": self.kind}


DiffusionData = Annotated[
    PointsData | DigitsData | AttributesData | EditData | SrData | CodesData | ImagesData, Field(discriminator="kind")
]

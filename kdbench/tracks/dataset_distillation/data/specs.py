"""What the data of a task are. Free of torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdbench.spec import SpecModel, digest

DATA_FORMAT = 1
"""Bumped by hand when a generator gives other content."""
NATIVE = {"digits": 8, "shapes16": 16}
"""Pixels of a side of the sources that come with kdbench."""


class Pinned(SpecModel):
    """Data whose content may be pinned."""

    digest: str | None = None
    """``RECIPE:CONTENT``, both 16 hexadecimal digits: the digest that the content must have. A pin whose RECIPE is not
    that of the other fields belongs to other data and does not apply."""

    @field_validator("digest")
    @classmethod
    def _pin(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[0-9a-f]{16}:[0-9a-f]{16}", value):
            raise ValueError("a pin is RECIPE:CONTENT, each 16 hexadecimal digits, or null")
        return value

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the content of the splits."""
        raise NotImplementedError(f"{type(self).__name__} must say what decides its content")

    def pin(self) -> str | None:
        """Digest that the content must have, or None where nothing is pinned for these fields."""
        if self.digest is None:
            return None
        recipe, content = self.digest.split(":")
        return content if recipe == digest(self.recipe()) else None


class ImagesData(Pinned):
    """Labelled images, of which ``ipc`` a class may be kept."""

    kind: Literal["images"] = "images"
    source: Literal["digits", "shapes16", "hf"] = "digits"
    seed: int = Field(0, ge=0)
    """Of generator and splits."""
    size: int = Field(16, ge=8, le=512)
    """Height and width in pixels."""
    train: int | None = Field(None, ge=2)
    """Real training images; null: all there are."""
    val: int | None = Field(None, ge=2)
    test: int | None = Field(None, ge=2)
    ipc: int = Field(10, ge=1)
    """Images per class: the distilled set stores no more numbers than so many images have."""
    flip: bool = False
    """Whether augmentation mirrors images; false where a mirror image may be of another class."""
    path: str = ""
    """``hf``: name on the hub or a local folder, for ``datasets.load_dataset``."""
    config: str | None = None
    """``hf``: name of the configuration."""
    revision: str = "main"
    """``hf``: commit, tag or branch of a hub data set."""
    image: str = "image"
    """``hf``: column with the images."""
    label: str = "label"
    """``hf``: column with the class numbers."""
    splits: dict[Literal["train", "val", "test"], str] = {"train": "train"}
    """``hf``: names of the data set's own parts; a missing val or test part is a stratified share of train each."""
    held: float = Field(0.1, gt=0, lt=0.5)
    """``hf``: the share of train that a missing val or test part has."""

    @model_validator(mode="after")
    def _complete(self) -> ImagesData:
        native = NATIVE.get(self.source)
        if native is not None and self.size != native:
            raise ValueError(f"source {self.source} has images of {native} pixels, not {self.size}")
        if self.source == "hf" and not self.path:
            raise ValueError("source hf needs path: a folder or the name of a data set")
        if self.source == "shapes16" and None in (self.train, self.val, self.test):
            raise ValueError("shapes16 is generated: say how many images train, val and test have")
        return self

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the content of the splits."""
        return {"format": DATA_FORMAT, **self.model_dump(mode="json", exclude={"digest", "ipc", "flip"})}


class GraphsData(Pinned):
    """Labelled graphs, of which so many bytes may be kept."""

    kind: Literal["graphs"] = "graphs"
    source: Literal["motifs", "folder", "hf"] = "motifs"
    seed: int = Field(0, ge=0)
    """Of generator and splits."""
    train: int | None = Field(None, ge=4)
    """Real training graphs; null: all there are."""
    val: int | None = Field(None, ge=4)
    test: int | None = Field(None, ge=4)
    noise: float = Field(0.05, ge=0, le=1)
    """``motifs``: share of the nodes whose label is drawn at random; that of the others is their degree."""
    path: str = ""
    """``folder``: a data set in the text files of the TU collection (``NAME_A.txt``, ``NAME_graph_indicator.txt``,
    ``NAME_graph_labels.txt`` and, where there are labels, ``NAME_node_labels.txt`` and ``NAME_edge_labels.txt``), NAME
    being the folder's name. ``hf``: name on the hub or a local folder, for ``datasets.load_dataset``, with the columns
    ``edge_index``, ``y``, ``num_nodes`` and, where there are labels, ``node_feat`` and ``edge_attr``."""
    revision: str = "main"
    """``hf``: commit, tag or branch of a hub data set."""
    held: float = Field(0.1, gt=0, lt=0.5)
    """``folder``, ``hf``: share of the graphs in each of val and test, where the data set has no such parts."""
    share: float = Field(0.05, gt=0, le=1)
    """Bytes that a distilled set may have, as a share of those of the training split."""
    pool: Literal["sum", "mean"] = "sum"
    """How networks bring the embeddings of nodes together."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of networks, after each layer."""

    @model_validator(mode="after")
    def _complete(self) -> GraphsData:
        if self.source != "motifs" and not self.path:
            raise ValueError(f"source {self.source} needs path: a folder, or for hf the name of a data set")
        if self.source == "motifs" and None in (self.train, self.val, self.test):
            raise ValueError("motifs are generated: say how many graphs train, val and test have")
        return self

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the content of the splits."""
        return {"format": DATA_FORMAT, **self.model_dump(mode="json", exclude={"digest", "share", "pool", "dropout"})}


DDData = Annotated[ImagesData | GraphsData, Field(discriminator="kind")]

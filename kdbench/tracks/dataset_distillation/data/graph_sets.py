"""Graphs of a task: generated ones, or those of a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.data import motifs
from kdbench.tracks.dataset_distillation.data.graphs import Graphs, Plain, pack
from kdbench.tracks.dataset_distillation.data.specs import GraphsData

SPLITS = ("train", "val", "test")
FIELDS = ("nodes", "edges", "kinds", "sizes", "counts", "y")


@dataclass
class GraphDataset:
    """All splits of a task."""

    splits: dict[str, Graphs]
    classes: int
    labels: int
    """Different node labels; they count from 0."""
    kinds: int
    """Different edge labels."""
    digest: str


def _numbers(path: Path) -> np.ndarray:
    """Rows of whole numbers of a text file. Raises ``UsageError`` for anything else."""
    try:
        return np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise UsageError(f"expected whole numbers: {error}", place=str(path)) from None


def _from_zero(values: np.ndarray) -> np.ndarray:
    """The same labels, counted from 0 in their order."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def folder_graphs(path: Path) -> Graphs:
    """All graphs of a folder in the text files of the TU collection.

    Nodes count from 1 over the whole folder; labels of any values count from 0 afterwards, and are all 0 where their
    file is missing. Loops and repeated edges are left out. Raises ``UsageError`` for a missing file or an edge between
    graphs.
    """
    path = path.expanduser()
    for needed in ("A", "graph_indicator", "graph_labels"):
        if not (path / f"{path.name}_{needed}.txt").exists():
            raise UsageError(f"there is no {path.name}_{needed}.txt", place=str(path))

    def column(name: str, like: int) -> np.ndarray:
        file = path / f"{path.name}_{name}.txt"
        return _from_zero(_numbers(file)[:, 0]) if file.exists() else np.zeros(like, dtype=np.int64)

    owner = _from_zero(_numbers(path / f"{path.name}_graph_indicator.txt")[:, 0])
    ends = _numbers(path / f"{path.name}_A.txt") - 1
    classes = column("graph_labels", 0)
    labels, kinds = column("node_labels", len(owner)), column("edge_labels", len(ends))
    if len(classes) != owner.max() + 1 or len(labels) != len(owner) or len(kinds) != len(ends):
        raise UsageError("the files do not have as many rows as there are graphs, nodes and edges", place=str(path))
    if ends.min() < 0 or ends.max() >= len(owner) or (owner[ends[:, 0]] != owner[ends[:, 1]]).any():
        raise UsageError("an edge joins nodes of two graphs, or nodes that there are not", place=str(path))
    nodes_of: list[list[int]] = [[] for _ in classes]
    place = np.zeros(len(owner), dtype=np.int64)
    for node, graph in enumerate(owner.tolist()):
        place[node] = len(nodes_of[graph])
        nodes_of[graph].append(int(labels[node]))
    edges_of: list[dict[tuple[int, int], int]] = [{} for _ in classes]
    for (u, v), kind in zip(ends.tolist(), kinds.tolist(), strict=True):
        if u != v:
            a, b = sorted((int(place[u]), int(place[v])))
            edges_of[int(owner[u])].setdefault((a, b), kind)
    return pack(
        (nodes, [(a, b, kind) for (a, b), kind in sorted(edges.items())], int(label))
        for nodes, edges, label in zip(nodes_of, edges_of, classes, strict=True)
    )


def _labels(rows: list[list[list[float]]]) -> list[list[int]]:
    """Rows of features as labels: equal rows get equal numbers, counted from 0 in the order of the features."""
    known = {row: place for place, row in enumerate(sorted({tuple(row) for graph in rows for row in graph}))}
    return [[known[tuple(row)] for row in graph] for graph in rows]


def hub_graphs(path: str, revision: str) -> dict[str, Graphs]:
    """The parts (``train`` and, where there are such, ``val`` and ``test``) of a data set of ``datasets``.

    Columns as those of the graphs on the hub: ``edge_index`` (2, E), ``num_nodes``, ``y``, and perhaps ``node_feat``
    (V, F) and ``edge_attr`` (E, F), whose distinct rows are labels. Graphs without a class (nan) are left out.
    """
    from datasets import load_dataset

    local = Path(path).expanduser().exists()
    found = load_dataset(path) if local else load_dataset(path, revision=revision)
    names = {"train": "train", "full": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    rows = [(names[part], row) for part in found if part in names for row in found[part]]
    if not rows:
        raise UsageError(f"the data set has none of the parts {', '.join(names)}", place=path)
    absent = {"edge_index", "num_nodes", "y"} - set(rows[0][1])
    if absent:
        raise UsageError(f"the data set has no columns {', '.join(sorted(absent))}", place=path)
    values = [float(np.asarray(row["y"], dtype=np.float64).reshape(-1)[0]) for _, row in rows]
    kept = [index for index, value in enumerate(values) if not np.isnan(value)]
    parts, rows = [rows[i][0] for i in kept], [(rows[i][0], rows[i][1]) for i in kept]
    classes = _from_zero(np.array([values[i] for i in kept]))
    nodes = _labels([row.get("node_feat") or [[0]] * int(row["num_nodes"]) for _, row in rows])
    kinds = _labels([row.get("edge_attr") or [[0]] * len(row["edge_index"][0]) for _, row in rows])
    plain: dict[str, list[Plain]] = {}
    for part, (_, row), labels, kind, label in zip(parts, rows, nodes, kinds, classes.tolist(), strict=True):
        edges: dict[tuple[int, int], int] = {}
        for u, v, k in zip(*row["edge_index"], kind, strict=True):
            if u != v:
                edges.setdefault((min(u, v), max(u, v)), k)
        plain.setdefault(part, []).append((labels, [(u, v, k) for (u, v), k in sorted(edges.items())], label))
    return {part: pack(graphs) for part, graphs in plain.items()}


def _stratified(everything: Graphs, count: int, spec: GraphsData) -> tuple[Graphs, Graphs]:
    """Without, and only, ``count`` graphs that are drawn from all classes."""
    from sklearn.model_selection import train_test_split

    y = everything.y.numpy()
    if np.bincount(y).min() < 3:
        raise UsageError("every class needs at least three graphs: one for each split", place=spec.path)
    rest, held = train_test_split(np.arange(len(y)), test_size=count, stratify=y, random_state=spec.seed)
    return everything.take(torch.from_numpy(rest)), everything.take(torch.from_numpy(held))


def _split(found: dict[str, Graphs], spec: GraphsData) -> dict[str, Graphs]:
    """All three splits, of the sizes that are asked for: missing ones come from the training part."""
    if "train" not in found:
        raise UsageError("the data set has no training part", place=spec.path)
    held = max(int(found["train"].y.max()) + 1, round(spec.held * len(found["train"])))
    for name in ("test", "val"):
        if name not in found:
            found["train"], found[name] = _stratified(found["train"], held, spec)
    for name in SPLITS:
        count = getattr(spec, name)
        if count is not None and count > len(found[name]):
            raise UsageError(f"data.{name} asks for {count} graphs, but there are {len(found[name])}")
        found[name] = found[name].take(torch.arange(len(found[name]))[:count])
    return found


def content_digest(splits: dict[str, Graphs]) -> str:
    """16 hexadecimal digits of the SHA-256 of all nodes, edges and classes."""
    sha = hashlib.sha256()
    for name in SPLITS:
        for field in FIELDS:
            value: Tensor = getattr(splits[name], field)
            sha.update(f"{name}{field}{tuple(value.shape)}".encode())
            sha.update(value.numpy().tobytes())
    return sha.hexdigest()[:16]


def _read(spec: GraphsData, cache: Cache) -> dict[str, Graphs]:
    if spec.source == "folder":
        return _split({"train": folder_graphs(Path(spec.path))}, spec)
    if spec.source == "hf":
        return _split(hub_graphs(spec.path, spec.revision), spec)

    def make(folder: Path) -> None:
        for name in SPLITS:
            made = motifs.graphs(name, getattr(spec, name), spec.seed, spec.noise)
            save_file({field: getattr(made, field) for field in FIELDS}, folder / f"{name}.safetensors")
        (folder / "about.json").write_text(json.dumps({"source": spec.source}) + "\n")

    folder = cache.get("data", {"track": "dataset_distillation", **spec.recipe()}, make)
    return {name: Graphs(**load_file(folder / f"{name}.safetensors")) for name in SPLITS}


def load(spec: GraphsData, cache: Cache) -> GraphDataset:
    """The data of a task, on the CPU. Raises ``UsageError`` where the content is not the one that the task pins."""
    splits = _read(spec, cache)
    found, pin = content_digest(splits), spec.pin()
    if pin is not None and pin != found:
        raise UsageError(
            f"the {spec.source} data have the digest {found}, but the task pins {pin}",
            place="data.digest",
            hint="another version of networkx or of the files? set data.digest to null to accept them",
        )

    def most(field: str) -> int:
        return 1 + max(
            (int(getattr(part, field).max()) for part in splits.values() if len(getattr(part, field))), default=0
        )

    return GraphDataset(splits, most("y"), most("nodes"), most("kinds"), found)

"""Derived data sets: which images and which labels a student gets. Everything is decided by the seed.

Functions take and return :class:`Items`, so that they are the same for generated and for real images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kdbench.tracks.vision.data import shapetex
from kdbench.tracks.vision.data.items import Items, first_per_class, join
from kdbench.tracks.vision.derived import (
    Canvas,
    Federated,
    FewClass,
    FewLabel,
    LongTail,
    Mismatch,
    MultiDomain,
    Noisy,
    Pool,
    PseudoDomain,
    Related,
    Webly,
)
from kdbench.tracks.vision.spec import SHAPETEX_CLASSES, DataSpec

Splits = dict[str, Items]


def rng_of(spec: DataSpec, purpose: int) -> np.random.Generator:
    """Generator of one decision about the data; the purposes are numbered in this module."""
    return np.random.default_rng([spec.seed, purpose])


PERMUTATION, FLIPS, CLASSES, CLIENTS, DRAWS, SHIFTS, TEACHER_SHIFTS = range(7)


# --- pure parts -------------------------------------------------------------------------------------------------------


def longtail_counts(classes: int, largest: int, factor: float, order: np.ndarray) -> np.ndarray:
    """(C,) images of each class: ``round(largest * factor ** (-rank / (C - 1)))``, at least 1.

    ``order`` lists the classes from the largest to the smallest.
    """
    counts = np.empty(classes, dtype=np.int64)
    counts[order] = np.maximum(1, np.rint(largest * factor ** (-np.arange(classes) / (classes - 1)))).astype(np.int64)
    return counts


def flip_labels(labels: np.ndarray, rate: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels (N,) of which exactly ``round(rate * N)`` are another, uniformly drawn class."""
    flipped = labels.copy()
    rows = rng.permutation(len(labels))[: round(rate * len(labels))]
    flipped[rows] = (labels[rows] + rng.integers(1, classes, size=len(rows))) % classes
    return flipped


def client_classes(
    partition: str, clients: int, classes: int, per_client: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Classes of each client.

    ``iid``: all. ``weak``: ``per_client`` consecutive ones of a permuted ring, so that neighbours overlap wherever
    the clients together have more places than there are classes. ``strong``: a partition of the permuted classes.
    """
    order = rng.permutation(classes)
    if partition == "iid":
        return [np.sort(order)] * clients
    if partition == "strong":
        return [np.sort(part) for part in np.array_split(order, clients)]
    starts = np.floor(np.arange(clients) * classes / clients).astype(int)
    return [np.sort(order[(start + np.arange(per_client)) % classes]) for start in starts]


# --- derivations ------------------------------------------------------------------------------------------------------


def _longtail_part(items: Items, spec: DataSpec, derive: LongTail, classes: int, largest: int) -> Items:
    order = rng_of(spec, PERMUTATION).permutation(classes)
    counts = longtail_counts(classes, largest, derive.factor, order)
    return items.take(first_per_class(items.truth, counts))


def _largest(items: Items, classes: int) -> int:
    return int(np.bincount(items.truth, minlength=classes).min())


def longtail(spec: DataSpec, derive: LongTail, base: Splits, classes: int) -> Splits:
    # The student's images are a part of the teacher's, so both keep the first images of every class.
    return {"train": _longtail_part(base["teacher"], spec, derive, classes, derive.largest)}


def fewlabel(spec: DataSpec, derive: FewLabel, base: Splits, classes: int) -> Splits:
    train = base["train"]
    mask = first_per_class(train.truth, np.full(classes, derive.labels))
    return {"train": train.labelled(np.where(mask, train.truth, -1))}


def fewclass(spec: DataSpec, derive: FewClass, base: Splits, classes: int) -> Splits:
    beyond = [c for c in derive.drop if not 0 <= c < classes]
    if beyond:
        raise ValueError(f"drop names the classes {beyond}, but there are {classes}")
    return {name: base[name].take(~np.isin(base[name].truth, derive.drop)) for name in ("train", "val")}


def _noisy_labels(spec: DataSpec, derive: Noisy, items: Items, classes: int) -> Items:
    return items.labelled(flip_labels(items.truth, derive.rate, classes, rng_of(spec, FLIPS)))


def noisy(spec: DataSpec, derive: Noisy, base: Splits, classes: int) -> Splits:
    if derive.teacher == "clean":
        return {"train": _noisy_labels(spec, derive, base["train"], classes)}
    return {"train": _noisy_labels(spec, derive, base["teacher"], classes).take(np.arange(len(base["train"])))}


def webly(spec: DataSpec, derive: Webly, base: Splits, classes: int) -> Splits:
    known, unknown = round(0.4 * derive.pool), round(0.3 * derive.pool)
    rows = shapetex.items("webly", derive.pool)
    rng = rng_of(spec, DRAWS)
    place = rng.permutation(derive.pool)  # kinds are mixed, not in blocks
    shape, texture = rows.columns["shape"].copy(), rows.columns["texture"].copy()
    truth = rows.truth.copy()
    strange, blank = place[known : known + unknown], place[known + unknown :]
    shape[strange] = len(shapetex.SHAPES) + rng.integers(len(shapetex.UNKNOWN_SHAPES), size=len(strange))
    shape[blank] = rng.choice([shapetex.FULL, shapetex.EMPTY], size=len(blank))
    truth[place[known:]] = -1
    domain = rng.integers(1, 5, size=derive.pool)
    pool = Items(rows.index, truth, truth, rows.columns).having(shape=shape, texture=texture, domain=domain).hidden()
    val, number = base["val"], np.arange(len(base["val"]))
    return {"train": pool, "val": val.having(domain=1 + (number + number // classes) % 4)}


def targets_of(spec: DataSpec, derive: Mismatch) -> np.ndarray:
    """The target classes in the order of their new numbers 0, 1, ..."""
    return np.sort(rng_of(spec, CLASSES).permutation(SHAPETEX_CLASSES)[: derive.targets])


def _relabel(items: Items, targets: np.ndarray) -> Items:
    """Classes numbered by their place among the targets, -1 for all others."""
    number = np.full(SHAPETEX_CLASSES, -1)
    number[targets] = np.arange(len(targets))
    return Items(items.index, number[items.truth], number[items.truth], items.columns)


def mismatch(spec: DataSpec, derive: Mismatch, base: Splits, classes: int) -> Splits:
    targets = targets_of(spec, derive)
    others = np.setdiff1d(np.arange(SHAPETEX_CLASSES), targets)
    labelled = shapetex.of_classes("extra", np.tile(targets, derive.labels))
    rng = rng_of(spec, DRAWS)
    unknown = round(derive.ratio * derive.unlabeled)
    # Permuted rounds through the classes: as balanced as the numbers allow.
    drawn = np.concatenate(
        [np.resize(rng.permutation(others), unknown), np.resize(rng.permutation(targets), derive.unlabeled - unknown)]
    )
    unlabelled = shapetex.of_classes("unlabeled", rng.permutation(drawn))
    tested = {name: items for name, items in base.items() if name not in ("teacher", "train")}
    return {
        "train": join([_relabel(labelled, targets), _relabel(unlabelled, targets).hidden()]),
        **{name: _relabel(items.take(np.isin(items.truth, targets)), targets) for name, items in tested.items()},
    }


def _spread(domains: list[dict[str, float]], count: int, part: int, ids: list[int]) -> Items:
    """``count`` images over the domains in equal parts, with the classes in turn inside each; metadata ``group``."""
    made, each = [], -(-count // len(domains))
    for number, (columns, group) in enumerate(zip(domains, ids, strict=True)):
        size = min(each, count - number * each)
        # Parts (train, val, test, teacher) and domains have their own range of indices.
        offset = SHAPETEX_CLASSES * ((part * 64 + group) * 4096)
        rows = shapetex.items("domains", max(size, 0), offset=offset)
        made.append(rows.having(**columns, group=group))
    return join(made)


TRAIN, VAL, TEST, TEACHER = range(4)


def multidomain(spec: DataSpec, derive: MultiDomain, base: Splits, classes: int) -> Splits:
    seen, unseen = list(derive.domains), list(derive.held_out)

    def part(ids: list[int], count: int | None, number: int) -> Items:
        return _spread([{"domain": domain} for domain in ids], count or 0, number, ids)

    return {
        "train": part(seen, spec.train, TRAIN),
        "val": part(seen, spec.val, VAL),
        "test": part(unseen, spec.test, TEST),
    }


def _pseudo(derive: PseudoDomain) -> tuple[list[dict[str, float]], int]:
    cells = [{"hue": hue, "sigma": sigma} for hue in range(derive.hues) for sigma in derive.noises]
    return cells, len(cells) - derive.held_out


def pseudodomain(spec: DataSpec, derive: PseudoDomain, base: Splits, classes: int) -> Splits:
    cells, cut = _pseudo(derive)
    ids = list(range(len(cells)))
    return {
        "train": _spread(cells[:cut], spec.train or 0, TRAIN, ids[:cut]),
        "val": _spread(cells[:cut], spec.val or 0, VAL, ids[:cut]),
        "test": _spread(cells[cut:], spec.test or 0, TEST, ids[cut:]),
    }


def federated(spec: DataSpec, derive: Federated, base: Splits, classes: int) -> Splits:
    rng = rng_of(spec, CLIENTS)
    owned = client_classes(derive.partition, derive.clients, classes, derive.classes, rng)
    free = [np.flatnonzero(base["teacher"].truth == c)[::-1].tolist() for c in range(classes)]
    private = []
    for client, mine in enumerate(owned):
        wanted = np.resize(rng.permutation(mine), derive.images)
        short = [int(c) for c in mine if len(free[c]) < (wanted == c).sum()]
        if short:
            raise ValueError(f"the teacher's data have too few images of the classes {short} for the clients")
        rows = np.array([free[c].pop() for c in wanted])
        private.append(base["teacher"].take(rows).having(client=client))
    each = -(-derive.proxy // derive.clients)
    train = join(private)
    positions = np.concatenate([client * derive.images + np.arange(each) for client in range(derive.clients)])
    positions = np.sort(positions)[: derive.proxy] if len(positions) > derive.proxy else positions
    proxy = train.take(positions).having(position=positions).hidden()
    return {"train": train, "proxy": proxy}


def related(spec: DataSpec, derive: Related, base: Splits, classes: int) -> Splits:
    labelled = shapetex.items("extra", derive.labels * SHAPETEX_CLASSES)
    unlabelled = shapetex.items("unlabeled", derive.unlabeled).hidden()
    return {"train": join([labelled, unlabelled])}


def pool(spec: DataSpec, derive: Pool, base: Splits, classes: int) -> Splits:
    if spec.source == "shapetex":
        return {
            "train": shapetex.items("extra", derive.labeled),
            "pool": shapetex.items("unlabeled", derive.pool).hidden(),
        }
    rest = base["rest"]  # what the teacher did not see
    if derive.labeled + derive.pool > len(rest):
        raise ValueError(f"{derive.labeled} + {derive.pool} images asked for, {len(rest)} are left by the teacher")
    rows = np.arange(derive.labeled + derive.pool)
    return {"train": rest.take(rows[: derive.labeled]), "pool": rest.take(rows[derive.labeled :]).hidden()}


def _shifted(items: Items, spec: DataSpec, derive: Canvas, purpose: int) -> Items:
    shifts = rng_of(spec, purpose).integers(-derive.reach, derive.reach + 1, size=(2, len(items)))
    return items.having(dx=shifts[0], dy=shifts[1])


def canvas(spec: DataSpec, derive: Canvas, base: Splits, classes: int) -> Splits:
    centred = {name: base[name].having(dx=0, dy=0) for name in ("train", "val")}
    return {**centred, "test": _shifted(base["test"], spec, derive, SHIFTS)}


DERIVATIONS: dict[str, Callable[..., Splits]] = {
    "longtail": longtail,
    "fewlabel": fewlabel,
    "fewclass": fewclass,
    "noisy": noisy,
    "webly": webly,
    "ssl_mismatch": mismatch,
    "multidomain": multidomain,
    "pseudodomain": pseudodomain,
    "fed": federated,
    "related": related,
    "pool": pool,
    "canvas": canvas,
}
"""Each takes (data spec, its own part, splits of the source, number of classes) and returns the splits that change."""


# --- the teacher's data -----------------------------------------------------------------------------------------------


def teacher_items(spec: DataSpec, teacher: Items, classes: int) -> Items:
    """Images that the default teacher learns from, of the source's images for it."""
    derive = spec.derive
    if isinstance(derive, LongTail) and derive.teacher == "same":
        return _longtail_part(teacher, spec, derive, classes, _largest(teacher, classes))
    if isinstance(derive, Noisy) and derive.teacher == "same":
        return _noisy_labels(spec, derive, teacher, classes)
    if isinstance(derive, Mismatch):
        targets = targets_of(spec, derive)
        return _relabel(teacher.take(np.isin(teacher.truth, targets)), targets)
    if isinstance(derive, MultiDomain):
        ids = list(derive.domains)
        return _spread([{"domain": domain} for domain in ids], len(teacher), TEACHER, ids)
    if isinstance(derive, PseudoDomain):
        cells, cut = _pseudo(derive)
        return _spread(cells[:cut], len(teacher), TEACHER, list(range(cut)))
    if isinstance(derive, Canvas):
        copies = teacher.take(np.tile(np.arange(len(teacher)), derive.copies))
        return _shifted(copies, spec, derive, TEACHER_SHIFTS)
    return teacher


def source_items(spec: DataSpec, target: str, count: int) -> tuple[Items, int]:
    """Images and labels of one source of the ``related`` data set, and its number of classes."""
    number = ("shape", "texture", "hue", "quadrant", "rotated").index(target)
    rows = shapetex.items(
        "sources", count, domain=4 if target in ("quadrant", "rotated") else 0, offset=number * 30 * 4096
    )
    if target == "shape":
        labels, classes = rows.columns["shape"], len(shapetex.SHAPES)
    elif target == "texture":
        labels, classes = rows.columns["texture"], len(shapetex.TEXTURES)
    elif target == "hue":
        labels, classes = shapetex.hue_sextants(rows, spec.seed, spec.texture), 6
    elif target == "quadrant":
        labels, classes = shapetex.quadrants(rows, spec.seed, spec.texture), 4
    else:
        labels, classes = rows.truth, SHAPETEX_CLASSES
    return Items(rows.index, labels.astype(np.int64), labels.astype(np.int64), rows.columns), classes

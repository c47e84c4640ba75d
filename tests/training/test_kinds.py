"""Families of classes that are found by the name of their kind."""

import sys
from abc import ABC

import pytest

from kdbench.errors import ArtifactError
from kdbench.training.kinds import OfKind


def family() -> type[OfKind]:
    class Thing(OfKind, ABC, noun="thing"):
        pass

    return Thing


def test_members_are_found_by_their_kind() -> None:
    root = family()
    small = type("Small", (root,), {"kind": "small"})
    smaller = type("Smaller", (small,), {"kind": "smaller"})
    assert (root.of_kind("small"), root.of_kind("smaller")) == (small, smaller)


def test_a_kind_that_is_inherited_is_not_registered_again() -> None:
    root = family()
    small = type("Small", (root,), {"kind": "small"})
    type("Other", (small,), {})
    assert root.of_kind("small") is small


def test_families_know_nothing_of_each_other() -> None:
    one, other = family(), family()
    type("Small", (one,), {"kind": "small"})
    with pytest.raises(ArtifactError, match="no thing is of kind 'small'"):
        other.of_kind("small")


def test_a_typing_error_gets_a_suggestion() -> None:
    root = family()
    type("Small", (root,), {"kind": "small"})
    with pytest.raises(ArtifactError, match="no thing is of kind 'smal'; did you mean 'small'"):
        root.of_kind("smal")


def test_two_classes_of_one_kind_are_refused() -> None:
    root = family()
    type("Small", (root,), {"kind": "small"})
    with pytest.raises(TypeError, match="both have a thing of kind 'small'"):
        type("Tiny", (root,), {"kind": "small"})


def test_a_module_imported_anew_replaces_its_class() -> None:
    root = family()
    type("Small", (root,), {"kind": "small"})
    again = type("Small", (root,), {"kind": "small"})
    assert root.of_kind("small") is again


def test_packages_of_a_family_are_imported_at_the_first_search(tmp_path, monkeypatch) -> None:
    package = tmp_path / "drawers"
    package.mkdir()
    root = "class Drawer(OfKind, noun='drawer', modules=['drawers']):\n    pass\n"
    (package / "__init__.py").write_text(f"from kdbench.training.kinds import OfKind\n\n\n{root}")
    (package / "low.py").write_text("from drawers import Drawer\n\n\nclass Low(Drawer):\n    kind = 'low'\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        from drawers import Drawer

        assert "drawers.low" not in sys.modules
        assert Drawer.of_kind("low").__name__ == "Low"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "drawers"]:
            del sys.modules[name]

"""What pydantic finds becomes words that name the key, what was found and what was expected."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from kdbench import yamlio
from kdbench.spec import Recipe, SpecModel
from kdbench.wording import found, name_of, problems_of


class Part(SpecModel):
    kind: Literal["small", "large"]
    share: float | None = Field(None, ge=0, lt=1)
    sizes: tuple[int, ...] = ()
    either: int | list[int] = 1
    flag: bool = True
    names: Annotated[list[str], Field(min_length=2)] = ["a", "b"]
    recipe: Recipe = Recipe()
    limits: dict[str, float] = {}


class Whole(SpecModel):
    part: Part
    parts: list[Part] = []
    count: int = Field(3, ge=1, le=9, description="How many there are.")


def wrong(tmp_path, text: str, model: Any = Whole) -> list[str]:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    document = yamlio.load(path)
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(document.data)
    return [str(problem).removeprefix(f"{path}:") for problem in problems_of(caught.value, document, model=model)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "part: {kind: smal}",
            "1:14: 'part.kind' must be 'small' or 'large', but is the text 'smal' (did you mean 'small'?)",
        ),
        ("part: {share: 0.5}", "1:7: the key 'kind' is missing in 'part'; one of 'small', 'large' was expected"),
        ("part: {kind: small, share: 1}", "1:28: 'part.share' must be at least 0 and below 1, but is the number 1"),
        ("part: {kind: small, share: x}", "1:28: 'part.share' must be a number, but is the text 'x'"),
        ("part: {kind: small, sizes: [1, 2.5]}", "1:32: 'part.sizes[1]' must be a whole number, but is the number 2.5"),
        ("part: {kind: small, sizes: 3}", "1:28: 'part.sizes' must be a list, but is the number 3"),
        ("part: {kind: small, either: x}", "1:29: 'part.either' must be a whole number or a list, but is the text 'x'"),
        ("part: {kind: small, flag: nope}", "1:27: 'part.flag' must be true or false, but is the text 'nope'"),
        (
            "part: {kind: small, names: [a]}",
            "1:28: 'part.names' must be at least 2 items long, but is a list of 1 item",
        ),
        ("part: {kind: small, limits: {a: }}", "1:33: 'part.limits.a' must be a number, but is null (nothing)"),
        ("part: 3", "1:7: 'part' must be a mapping of keys to values, but is the number 3"),
        ("part: {kind: small, recipe: {lr: 0}}", "1:34: 'part.recipe.lr' must be above 0, but is the number 0"),
        (
            "part: {kind: small, recipe: {optimiser: sgd}}",
            "1:30: unknown key 'optimiser' in 'part.recipe' (did you mean 'optimizer'?)",
        ),
        (
            "part: {kind: small}\nparts:\n  - {kind: large, flug: true}",
            "3:19: unknown key 'flug' in 'parts[0]' (did you mean 'flag'?)",
        ),
        ("part: {kind: small}\ncount: 12", "2:8: 'count' must be at least 1 and at most 9, but is the number 12"),
        (
            "part: {kind: small}\ncount: {a: 1, b: 2}",
            "2:8: 'count' must be a whole number, but is a mapping with the keys a, b",
        ),
    ],
)
def test_one_problem(tmp_path, text, expected):
    assert [line for line in wrong(tmp_path, text) if "kind' is missing" not in line or "kind" in expected] == [
        expected
    ]


def test_problems_come_in_the_order_of_the_file(tmp_path):
    lines = wrong(tmp_path, "count: 0\nzzz: 1\npart:\n  kind: small\n  flag: 7\n  share: 3\n")
    assert [line.partition(": ")[0] for line in lines] == ["1:8", "2:1", "5:9", "6:10"]


def test_without_a_model_the_bound_that_was_broken_is_named(tmp_path):
    (line,) = wrong(tmp_path, "part: {kind: small}\ncount: 12", model=None)
    assert line == "2:8: 'count' must be at most 9, but is the number 12"


def test_a_prefix_says_where_the_data_stands(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("deep:\n  - {part: {kind: x}}\n")
    document = yamlio.load(path)
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate(document.data["deep"][0])
    (problem,) = problems_of(caught.value, document, ("deep", 0), Whole)
    assert problem.place == f"{path}:2:19"
    assert "'deep[0].part.kind' must be 'small' or 'large'" in problem.message


def test_yes_is_no_truth_value_and_the_hint_says_so(tmp_path):
    class Strict(SpecModel):
        flag: bool = Field(strict=True)

    path = tmp_path / "a.yaml"
    path.write_text("flag: yes\n")
    document = yamlio.load(path)
    with pytest.raises(ValidationError) as caught:
        Strict.model_validate(document.data)
    (problem,) = problems_of(caught.value, document, model=Strict)
    assert problem.hint == "write true or false; yes, no, on and off are text in YAML 1.2"


def test_values_are_named_and_long_ones_cut():
    assert found("x" * 100) == f"the text '{'x' * 37}...'"
    assert found(True) == "the truth value true"
    assert found([]) == "an empty list"
    assert found(dict.fromkeys("abcdef")) == "a mapping with the keys a, b, c, d, ..."
    assert name_of(("methods", 2, "params", "alpha")) == "methods[2].params.alpha"

"""Parameters read from the source mean what the executed class means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from kdbench.discovery.index import _decode_reading, _encode_reading
from kdbench.discovery.modules import load_module
from kdbench.discovery.params import accepts
from kdbench.discovery.records import Method
from kdbench.discovery.source import read
from kdbench.errors import UsageError
from kdbench.registry import params_class
from kdbench.yamlio import load
from tests.helpers.plugins import METHOD, write

CARD = METHOD.split("class MethodParams")[0].format(slug="m", track="vision") + "from typing import Literal\n\n\n"
TRAIN = "\n\n@hookimpl\ndef train(task, params):\n    return None\n"

FIELDS = '''class Sample(Params):
    """All kinds of fields."""

    whole: int = Field(3, ge=1, lt=10, description="d")
    number: float = Field(2, gt=0, le=1e3, description="d")
    even: int = Field(4, multiple_of=2, description="d")
    flag: bool = Field(False, description="d")
    text: str = Field("ab", min_length=1, max_length=5, description="d")
    choice: Literal["a", "b", 3, None] = Field("a", description="d")
    maybe: float | None = Field(None, ge=0, description="d")
    either: int | str = Field("auto", description="d")
    many: list[float] = Field([1, 2.5], max_length=3, description="d")
    pair: tuple[int, float] = Field((1, 2), description="d")
    tail: tuple[float, ...] = Field((0.5,), min_length=1, description="d")
    named: dict[str, int] = Field({"x": 1}, description="d")
    deep: dict[str, list[tuple[int, bool]]] | None = Field({"k": [(1, True)]}, description="d")
'''

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 20),
    st.floats(-20, 2000),
    st.just(float("inf")),
    st.sampled_from(["a", "b", "", "auto", "1", "0.5", "true", "too long a text"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y"]), inner, max_size=2),
    max_leaves=5,
)
NAMES = [line.split(":")[0].strip() for line in FIELDS.splitlines() if "Field(" in line]


def method_of(path: Path) -> Method:
    reading = read(path)
    assert reading.flaws == ()
    reading = _decode_reading(json.loads(json.dumps(_encode_reading(reading))))  # as from the index
    return Method(
        key="vision/m",
        slug="m",
        track="vision",
        card=reading.card,
        path=path,
        module=None,
        digest=reading.digest,
        fields=reading.fields,
        doc="",
        source="drop-in",
        imports=(),
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> tuple[Method, Any]:
    path = write(tmp_path_factory.mktemp("plugin") / "m.py", CARD + FIELDS + TRAIN)
    return method_of(path), params_class(load_module(path, None))


def test_the_model_is_the_class(sample):
    method, real = sample
    static = method.params_model()
    assert static.model_json_schema()["properties"] == real.model_json_schema()["properties"]
    assert list(static.model_fields) == list(real.model_fields) == NAMES
    assert method.canonical({}) == real().model_dump(mode="json")


@given(st.dictionaries(st.sampled_from([*NAMES, "unknown"]), VALUES, max_size=3))
@settings(max_examples=300, deadline=None)
def test_canonical_agrees_with_the_class(sample, params):
    """What is accepted gives the same values; what JSON in strict mode refuses is refused."""
    method, real = sample
    try:
        expected = real.model_validate_json(json.dumps(params), strict=True).model_dump(mode="json")
    except ValidationError:
        with pytest.raises(UsageError):
            method.canonical(params)
        return
    found = method.canonical(params)
    assert found == expected
    assert method.canonical(found) == found
    assert real.model_validate(found).model_dump(mode="json") == found
    json.dumps(found, allow_nan=False)


KINDS = [
    int,
    float,
    bool,
    str,
    None,
    Literal["a", 3, True],
    int | None,
    float | str,
    list[float],
    tuple[int, float],
    tuple[bool, ...],
    dict[str, int | None],
    list[dict[str, tuple[int, ...]]],
]


@given(st.sampled_from(KINDS), VALUES)
@example(Literal["a", 3, True], 1)
@settings(max_examples=500, deadline=None)
def test_defaults_are_judged_as_pydantic_judges_them(kind, value):
    adapter = TypeAdapter(kind, config={"allow_inf_nan": False})
    try:
        adapter.validate_json(json.dumps(value), strict=True)
        expected = True
    except ValidationError:
        expected = False
    assert accepts(kind, value) == expected


def test_each_wrong_parameter_is_told(sample):
    method, _ = sample
    with pytest.raises(UsageError) as caught:
        method.canonical({"whole": 0, "nmber": 1, "flag": "yes", "text": "x"})
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "'whole' must be at least 1 and below 10, but is the number 0" in text
    assert "vision/m has no parameter 'nmber'" in text
    assert "did you mean 'number'" in text
    assert "'flag' must be true or false" in text


def test_problems_have_the_place_of_a_suite(sample, tmp_path):
    method, _ = sample
    path = write(tmp_path / "suite.yaml", "params:\n  whole: 5\n  pair: [1, x]\n")
    with pytest.raises(UsageError) as caught:
        method.canonical(load(path).at(("params",)))
    assert [problem.place for problem in caught.value.problems] == [f"{path}:3:13"]


@pytest.mark.parametrize("value", [{1, 2}, object(), Path("x"), float("nan"), float("-inf")])
def test_what_no_job_can_record_is_refused(sample, value):
    with pytest.raises(UsageError):
        sample[0].canonical({"number": value})


def test_a_method_without_parameters_accepts_none(tmp_path):
    method = method_of(write(tmp_path / "m.py", CARD + TRAIN))
    assert method.canonical({}) == {}
    with pytest.raises(UsageError, match="has no parameter 'x'"):
        method.canonical({"x": 1})


def test_an_edited_file_has_its_new_parameters(tmp_path):
    path = write(tmp_path / "m.py", METHOD.format(slug="m", track="vision"))
    assert method_of(path).canonical({}) == {"weight": 0.5}
    write(path, METHOD.format(slug="m", track="vision").replace("0.5", "0.7"))
    assert method_of(path).canonical({}) == {"weight": 0.7}

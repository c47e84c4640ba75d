"""YAML 1.2 as plain data, with the place of every value, and nothing that costs time, memory or safety."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench import yamlio
from kdbench.errors import UsageError
from kdbench.yamlio import Document

relaxed = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(folder: Path, content: str | bytes):
    return yamlio.load(write(folder, content))


def problems(folder: Path, content: str | bytes) -> list[str]:
    """Problems of a file as ``line:column: message (hint)``."""
    with pytest.raises(UsageError) as caught:
        read(folder, content)
    name = f"{folder / 'file.yaml'}:"
    lines = [str(problem) for problem in caught.value.problems]
    assert all(line.startswith(name) for line in lines), lines
    return [line.removeprefix(name) for line in lines]


# --- scalars ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("0o17", 15),
        ("0x1F", 31),
        ("012", 12),
        ("+12", 12),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
        *((word, word) for word in ("no", "yes", "on", "off", "y", "N", "nUll", "tRue")),
        *((word, word) for word in ("1_000", "0b11", "2026-01-02", "12:30:45", "1e", ".", "e3", "0o8", "+.inf.", "=")),
    ],
)
def test_plain_scalars_follow_the_core_schema(tmp_path, text, value):
    found = read(tmp_path, f"a: {text}\n").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_number(tmp_path):
    assert math.isnan(read(tmp_path, "a: .NaN").data["a"])


@relaxed
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_writes_as_a_float_is_read_as_that_float(tmp_path, number):
    assert read(tmp_path, f"a: {number!r}").data["a"] == number


keys = st.text("abcdefgh", min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cn")), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)


@relaxed
@given(st.dictionaries(keys, values, max_size=5), st.sampled_from([None, 2]))
def test_every_json_object_is_yaml_and_every_value_stands_where_its_place_says(tmp_path, data, indent):
    text = json.dumps(data, ensure_ascii=False, indent=indent)
    document = read(tmp_path, text)
    assert document.data == data
    lines = text.split("\n")

    def check(value, loc):
        mark = document.mark(loc)
        rest = "\n".join([lines[mark.line - 1][mark.column - 1 :], *lines[mark.line :]])
        assert json.JSONDecoder().raw_decode(rest)[0] == value
        for part, child in (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        ):
            check(child, (*loc, part))

    check(data, ())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.text(max_size=40) | st.text("a:-[]{}&*!|>'\"#%@`\t\n ,?", max_size=40))
def test_any_content_is_read_or_refused_with_a_place(tmp_path, content):
    content = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    try:
        data, places = read(tmp_path, content).data, []
    except UsageError as error:
        data, places = {}, [problem.place for problem in error.problems]
    assert isinstance(data, dict)
    assert all(place.startswith(f"{tmp_path}/file.yaml:") for place in places)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a:\n\tb: 1\n", "2:1: a tab indents this line, but YAML is indented with spaces (replace it by two spaces)"),
        ("a:\n  b: 1\n \tc: 2\n", "3:2: a tab indents this line"),
        ("a: |\n\ttext\n", "2:1: a tab indents this line"),
        ("", "1:1: the file is empty, but a mapping of keys to values was expected"),
        ("# only a comment\n", "1:1: the file is empty"),
        ("null\n", "1:1: the file is empty"),
        ("- a\n- b\n", "1:1: the file holds a list of 2 items, but a mapping"),
        ("just text\n", "1:1: the file holds the text 'just text', but a mapping"),
        ("a: 1\n---\nb: 2\n", "2:1: a second YAML document begins here, but a file holds one"),
        ("a: 1\nb: \0\n", "2:4: a NUL byte is not allowed in YAML"),
        ("a: \x1b[0m\n", "1:4: the control character U+001B is not allowed in YAML"),
        (b"a: 1\nb: \xe4\xf6\n", "2:4: byte 0xe4 is not UTF-8 text (save the file as UTF-8)"),
        ("a: 1\n".encode("utf-16"), "1:1: byte 0xff is not UTF-8 text"),
        ("a: b: c\n", "1:5: a ':' follows where no key can stand"),
        ("a: 'open\nb: 1\n", "3:1: the text in quotes is not closed (it begins in line 1)"),
        ("a: [1, 2\nb: 3\n", "2:2: a list that begins with '[' is not closed by ']' (it begins in line 1)"),
        ("a: {b: 1\n", "2:1: a mapping that begins with '{' is not closed"),
        ("a: @b\n", "1:4: this character cannot begin a value (put the text in quotes)"),
        ("a: *b\n", "1:4: this alias refers to no anchor"),
        ("a: &b [*b]\n", "1:4: an alias within this value refers to the value itself"),
        ("a: " + "[" * 101, "1:103: more than 100 lists and mappings are within each other"),
    ],
)
def test_a_bad_file_gets_its_place_and_what_is_wrong(tmp_path, content, expected):
    (problem,) = problems(tmp_path, content)
    assert problem.startswith(expected)


def test_all_problems_of_a_file_are_reported_together(tmp_path):
    content = """\
a: 1
a: 2
b: {c: 1, c: 2}
3: x
? [k]
: y
<<: z
run: !!python/object/apply:os.system [touch marker]
own: !mine {}
int: !!int x
"""
    found = problems(tmp_path, content)
    assert [problem.partition(": ")[0] for problem in found] == [
        "2:1",
        "3:11",
        "4:1",
        "5:3",
        "7:1",
        "8:6",
        "9:6",
        "10:6",
    ]
    assert "the key 'a' is given twice; it stands already in line 1" in found[0]
    assert "the key '3' is the number 3, but keys are text (write '3' in quotes)" in found[2]
    assert "the tag !!python/object/apply:os.system is not accepted" in found[5]
    assert "'x' is not a whole number, which its tag asks for" in found[7]


@pytest.mark.parametrize(
    "tag", ["!!python/name:os.system", "!!python/object/new:subprocess.Popen", "!!binary", "!!set", "!x", "!<y>"]
)
def test_no_tag_makes_anything_but_plain_values(tmp_path, tag):
    (problem,) = problems(tmp_path, f"a: {tag} [touch]\n")
    assert problem.startswith("1:4: the tag ")
    assert "never run code" in problem


def test_a_large_file_is_refused_by_its_size_and_not_read(tmp_path):
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take hours and all memory
    started = time.perf_counter()
    with pytest.raises(UsageError, match=r"1,099,511,627,776 bytes, but YAML files up to 1,048,576 bytes are read"):
        yamlio.load(path)
    assert time.perf_counter() - started < 1


def test_a_bomb_of_aliases_is_defused(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    started = time.perf_counter()
    (problem,) = problems(tmp_path, "\n".join(levels))
    assert "aliases blow this file up to more than 100,000 values" in problem
    assert time.perf_counter() - started < 5


def test_a_bomb_of_long_texts_is_defused(tmp_path):
    (problem,) = problems(tmp_path, f"a: &a {'x' * 500_000}\nb: [{', '.join(['*a'] * 9)}]\n")
    assert "4,194,304 characters" in problem


def test_depth_that_would_overflow_the_stack_of_the_parser_is_refused(tmp_path):
    (problem,) = problems(tmp_path, "[" * 500_000)
    assert "more than 100 lists and mappings" in problem


def test_values_of_an_alias_are_copies(tmp_path):
    data = read(tmp_path, "a: &a {x: [1]}\nb: *a\n").data
    data["a"]["x"].append(2)
    assert data["b"] == {"x": [1]}


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(UsageError, match=r"there is no such file \(did you mean 'quickstart\.yaml'\?\)"):
        yamlio.load(tmp_path / "quikstart.yaml")
    with pytest.raises(UsageError, match=r"there is no such file \(its folder does not exist\)"):
        yamlio.load(tmp_path / "none" / "a.yaml")
    with pytest.raises(UsageError, match=r"this is a folder, but a YAML file was expected .*quickstart\.yaml"):
        yamlio.load(tmp_path)
    with pytest.raises(UsageError, match="this is a device or a pipe"):
        yamlio.load(Path("/dev/zero"))
    with pytest.raises(UsageError, match="no possible name of a file"):
        yamlio.load(Path("a\0b"))


def test_a_byte_order_mark_is_no_character(tmp_path):
    document = read(tmp_path, b"\xef\xbb\xbfa: 1\n")
    assert document.data == {"a": 1}
    assert document.mark(("a",))[1:] == (1, 4)


# --- documents --------------------------------------------------------------------------------------------------------


def test_columns_count_characters_and_keys_have_places(tmp_path):
    document = read(tmp_path, "ä: {ü: 1, ö: [x, y]}\n")
    assert document.mark(("ä", "ö", 1))[1:] == (1, 18)
    assert document.mark(("ä", "ö"), key=True)[1:] == (1, 11)
    assert document.mark(("ä", "none", "deeper"))[1:] == (1, 4)
    assert document.place(("ä", "ü")) == f"{tmp_path}/file.yaml:1:8"


def test_merge_is_deep_for_mappings_and_keeps_the_place_of_who_wrote_a_value(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: [1, 2]}\nb: 1\n")
    (tmp_path / "over.yaml").write_text("\na: {y: [3], z: 4}\n")
    base, over = yamlio.load(tmp_path / "base.yaml"), yamlio.load(tmp_path / "over.yaml")
    merged = yamlio.merge(base, over)
    assert merged.data == {"a": {"x": 1, "y": [3], "z": 4}, "b": 1}
    assert base.data == {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merged.place(("a", "x")) == f"{tmp_path}/base.yaml:1:8"
    assert merged.place(("a", "y", 0)) == f"{tmp_path}/over.yaml:2:9"
    assert merged.place(("b",)) == f"{tmp_path}/base.yaml:2:4"


def test_a_mapping_of_another_kind_replaces_and_one_of_the_same_kind_merges(tmp_path):
    (tmp_path / "base.yaml").write_text("student: {kind: net, width: 4}\nteacher: {kind: net, width: 8}\n")
    (tmp_path / "over.yaml").write_text("student: {kind: hf, name: x}\nteacher: {width: 9}\n")
    base, over = yamlio.load(tmp_path / "base.yaml"), yamlio.load(tmp_path / "over.yaml")
    merged = yamlio.merge(base, over)
    assert merged.data == {"student": {"kind": "hf", "name": "x"}, "teacher": {"kind": "net", "width": 9}}
    assert merged.place(("student", "name")) == f"{tmp_path}/over.yaml:1:27"
    assert merged.place(("student", "width")) == merged.place(("student",))  # gone: its place is its parent's
    same = yamlio.merge(base, Document.of({"student": {"kind": "net", "depth": 2}}, "x"))
    assert same.data["student"] == {"kind": "net", "width": 4, "depth": 2}


mappings = st.dictionaries(keys, values, max_size=5)


@given(mappings, mappings, mappings)
@settings(max_examples=60, deadline=None)
def test_merge_has_an_identity_and_is_associative(a, b, c):
    a, b, c = (Document.of(data, "x") for data in (a, b, c))
    empty = Document.of({}, "x")
    assert yamlio.merge(a, empty).data == a.data == yamlio.merge(empty, a).data
    assert yamlio.merge(a, a).data == a.data
    assert yamlio.merge(yamlio.merge(a, b), c).data == yamlio.merge(a, yamlio.merge(b, c)).data


def test_a_part_of_a_document_keeps_its_places(tmp_path):
    document = read(tmp_path, "a:\n  b: {c: 1}\n")
    part = document.at(("a", "b"))
    assert part.data == {"c": 1}
    assert part.place(("c",)) == document.place(("a", "b", "c"))
    assert part.under("x", "y").data == {"x": {"y": {"c": 1}}}
    assert part.under("x", "y").place(("x", "y", "c")) == document.place(("a", "b", "c"))
    absent = document.at(("a", "none"))
    assert absent.data == {}
    assert absent.place(()) == document.place(("a",))


def test_lists_are_joined_with_the_places_of_their_items(tmp_path):
    (tmp_path / "one.yaml").write_text("a: [1, 2]\n")
    (tmp_path / "two.yaml").write_text("a: [3]\n")
    one, two = (yamlio.load(tmp_path / f"{name}.yaml").at(("a",)) for name in ("one", "two"))
    joined = yamlio.concatenate(one, two)
    assert joined.data == [1, 2, 3]
    assert [Path(joined.mark((i,)).file).stem for i in range(3)] == ["one", "one", "two"]

"""YAML files with the place of every value.

Files are read as YAML 1.2 (core schema): ``1e-3`` is a number, ``no`` and ``on`` are text, ``0o17`` is 15. They are
data only: a tag that asks for anything but plain values is an error, and files that are large, deeply nested or
that grow by aliases are refused before they cost time or memory.

Every problem has its place, ``file:line:column`` with lines and columns from 1. Syntax errors stop at the first;
all other problems of a file are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kdbench.errors import Problem, UsageError, did_you_mean
from kdbench.wording import found, has, problems_of

__all__ = ["Document", "Loc", "Mark", "Places", "concatenate", "core_scalar", "found", "load", "merge", "problems_of"]

MAX_BYTES = 1 << 20
"""Larger files are refused by their size, before they are read."""
MAX_NODES = 100_000
"""Scalars, lists and mappings of a file, each counted as often as aliases repeat it."""
MAX_TEXT = 4 * MAX_BYTES
"""Characters of all scalars of a file, repetitions by aliases included."""
MAX_DEPTH = 100
"""Lists and mappings within each other."""

KIND = "kind"
"""The key that says which form a mapping has, where several are possible."""

Loc = tuple[str | int, ...]

_STR, _INT, _FLOAT, _BOOL, _NULL, _MAP, _SEQ = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")
)
# YAML 1.2.2, section 10.3.2 (tag resolution of the core schema)
_CORE: tuple[tuple[str, str], ...] = (
    (_NULL, r"(?:null|Null|NULL|~|)\Z"),
    (_BOOL, r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    (_INT, r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    (
        _FLOAT,
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
    ),
)
_KINDS = {_NULL: "null", _BOOL: "true or false", _INT: "a whole number", _FLOAT: "a number"}
_PATTERNS = {tag: re.compile(pattern) for tag, pattern in _CORE}
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Loader(yaml.CSafeLoader):
    """libyaml's parser with the scalars of YAML 1.2; it composes nodes and constructs nothing."""

    yaml_implicit_resolvers: dict[Any, Any] = {}


for _tag, _pattern in _PATTERNS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)


class Mark(NamedTuple):
    """Where something stands: a file (or a word for what is no file), line and column from 1."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass
class Places:
    """The marks of a value, of its key, and of what is in it; the same tree as the data."""

    value: Mark
    key: Mark
    children: dict[str | int, Places] = field(default_factory=dict)


@dataclass
class Document:
    """Plain data with the place of every value; several files may have written it."""

    data: Any
    path: Path
    places: Places

    @classmethod
    def of(cls, data: Any, source: str) -> Document:
        """A document of data that no file wrote; ``source`` is what its places say, such as ``overrides``."""
        mark = Mark(source)
        return cls(deepcopy(data), Path(source), Places(mark, mark))

    def mark(self, loc: Sequence[str | int], *, key: bool = False) -> Mark:
        """Mark of a value (or of its key); of the nearest ancestor if there is no such value."""
        at = self.places
        for part in loc:
            child = at.children.get(part)
            if child is None:
                return at.value
            at = child
        return at.key if key else at.value

    def place(self, loc: Sequence[str | int], *, key: bool = False) -> str:
        """``file:line:column`` of a value (or of its key); of the nearest ancestor if there is no such value."""
        return str(self.mark(loc, key=key))

    def at(self, loc: Sequence[str | int]) -> Document:
        """The document of one value. An absent value is an empty mapping placed at its nearest ancestor."""
        data, at = self.data, self.places
        for part in loc:
            if not has(data, part):
                return Document({}, self.path, Places(at.value, at.value))
            data, at = data[part], at.children.get(part, Places(at.value, at.value))
        return Document(data, self.path, at)

    def under(self, *keys: str) -> Document:
        """This document as the value of a key (or of keys within each other): the opposite of :meth:`at`."""
        document = self
        for key in reversed(keys):
            mark = document.places.value
            document = Document({key: document.data}, self.path, Places(mark, mark, {key: document.places}))
        return document


def merge(base: Document, over: Document) -> Document:
    """What ``over`` changes in ``base``: mappings merge deeply, everything else (lists too) is replaced.

    A mapping of another ``kind`` replaces what it is merged over: the keys of one kind mean nothing to another.
    Neither argument is changed. Every value keeps the place of the file that wrote it.
    """
    if not isinstance(base.data, dict) or not isinstance(over.data, dict) or _other_kind(base.data, over.data):
        return over
    data, children = dict(base.data), dict(base.places.children)
    for key in over.data:
        part = over.at((key,))
        if key in data:
            part = merge(base.at((key,)), part)
        data[key], children[key] = part.data, part.places
    return Document(data, over.path, Places(over.places.value, over.places.key, children))


def _other_kind(base: dict[str, Any], over: dict[str, Any]) -> bool:
    return KIND in base and KIND in over and base[KIND] != over[KIND]


def concatenate(first: Document, second: Document) -> Document:
    """Two lists as one; every item keeps its place, the whole has that of the second."""
    children = dict(first.places.children)
    for index, places in second.places.children.items():
        children[len(first.data) + int(index)] = places
    whole = Places(second.places.value, second.places.key, children)
    return Document([*first.data, *second.data], second.path, whole)


def load(path: Path) -> Document:
    """Read a YAML file that holds one mapping with text keys. Raises ``UsageError`` with every problem found."""
    text = _read(path)
    document = _Reader(str(path), text).document()
    if not isinstance(document.data, dict):
        what = "the file is empty" if document.data is None else f"the file holds {found(document.data)}"
        message = f"{what}, but a mapping of keys to values was expected"
        raise UsageError(message, place=document.place(()), hint="begin a line with a key, such as 'tasks:'")
    return document


def _read(path: Path) -> str:
    if "\0" in str(path):
        raise UsageError("this is no possible name of a file", place=repr(str(path)))
    try:
        if path.is_dir():
            raise UsageError("this is a folder, but a YAML file was expected", place=str(path), hint=_files_in(path))
        if not path.exists():
            hint = _files_in(path.parent, like=path.name) if path.parent.is_dir() else "its folder does not exist"
            raise UsageError("there is no such file", place=str(path), hint=hint)
        if not path.is_file():
            raise UsageError("this is a device or a pipe, but a YAML file was expected", place=str(path))
        size = path.stat().st_size
        if size <= MAX_BYTES:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            size = max(size, len(content))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", place=str(path)) from error
    if size > MAX_BYTES:
        message = f"the file has {size:,} bytes, but YAML files up to {MAX_BYTES:,} bytes are read"
        raise UsageError(message, place=str(path), hint="is this the right file? split a large suite with 'extends'")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", errors="replace")
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 text"
        raise UsageError(message, place=_place_of_end(path, before), hint="save the file as UTF-8") from error
    bad = _UNPRINTABLE.search(text)
    if bad:
        name = "a NUL byte" if bad[0] == "\0" else f"the control character U+{ord(bad[0]):04X}"
        message = f"{name} is not allowed in YAML"
        hint = "is this a binary file, or UTF-16? save it as UTF-8 text" if bad[0] == "\0" else "remove it"
        raise UsageError(message, place=_place_of_end(path, text[: bad.start()]), hint=hint)
    return text


def _files_in(folder: Path, like: str = "") -> str:
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    if not names:
        return "no YAML file is in that folder"
    return did_you_mean(like, names, label="YAML files there")


def _place_of_end(path: Path, before: str) -> str:
    lines = before.removeprefix("\ufeff").split("\n")
    return str(Mark(str(path), len(lines), len(lines[-1]) + 1))


class _Reader:
    """One file on its way from text to a :class:`Document`."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.problems: list[Problem] = []
        self.nodes = 0
        self.characters = 0
        self.open: set[int] = set()

    def document(self) -> Document:
        try:
            self._scan()
            node = yaml.compose(self.text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            raise UsageError([self._syntax(error)]) from error
        if node is None:
            start = Mark(self.file, 1, 1)
            return Document(None, Path(self.file), Places(start, start))
        data, places = self._value(node, self._mark(node.start_mark))
        if self.problems:
            raise UsageError(self.problems)
        return Document(data, Path(self.file), places)

    def _mark(self, mark: Any) -> Mark:
        return Mark(self.file, mark.line + 1, mark.column + 1)

    def _stop(self, mark: Any, message: str, hint: str = "") -> UsageError:
        """An error after which reading on makes no sense; what was found before goes along."""
        return UsageError([*self.problems, Problem(str(self._mark(mark)), message, hint)])

    def _scan(self) -> None:
        """Bound depth and size before nodes are composed: libyaml's composer is recursive and has no limits."""
        depth = nodes = documents = 0
        for event in yaml.parse(self.text, Loader=_Loader):
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                depth += 1
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                depth -= 1
                continue
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    message = "a second YAML document begins here, but a file holds one"
                    raise self._stop(event.start_mark, message, "remove the line '---' or use two files")
            nodes += 1
            if depth > MAX_DEPTH:
                raise self._stop(event.start_mark, f"more than {MAX_DEPTH} lists and mappings are within each other")
            if nodes > MAX_NODES:
                raise self._stop(event.start_mark, f"the file has more than {MAX_NODES:,} values")

    def _value(self, node: Any, key: Mark) -> tuple[Any, Places]:
        mark = self._mark(node.start_mark)
        self.nodes += 1
        if isinstance(node, yaml.ScalarNode):
            self.characters += len(node.value)
        if self.nodes > MAX_NODES or self.characters > MAX_TEXT:
            message = f"aliases blow this file up to more than {MAX_NODES:,} values or {MAX_TEXT:,} characters"
            raise self._stop(node.start_mark, message, "write the values out, or use 'grid' and 'extends'")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node), Places(mark, key)
        if id(node) in self.open:
            raise self._stop(node.start_mark, "an alias within this value refers to the value itself")
        self.open.add(id(node))
        try:
            return self._sequence(node, key) if isinstance(node, yaml.SequenceNode) else self._mapping(node, key)
        finally:
            self.open.discard(id(node))

    def _sequence(self, node: yaml.SequenceNode, key: Mark) -> tuple[list[Any], Places]:
        self._check_tag(node, _SEQ)
        data, places = [], Places(self._mark(node.start_mark), key)
        for index, child in enumerate(node.value):
            value, places.children[index] = self._value(child, self._mark(child.start_mark))
            data.append(value)
        return data, places

    def _mapping(self, node: Any, key: Mark) -> tuple[dict[str, Any], Places]:
        self._check_tag(node, _MAP)
        data: dict[str, Any] = {}
        places = Places(self._mark(node.start_mark), key)
        for name, name_mark, child in self._items(node):
            value, place = self._value(child, name_mark)
            if name in data:
                first = places.children[name].key
                message = f"the key {name!r} is given twice; it stands already in line {first.line}"
                self.problems.append(Problem(str(name_mark), message, "keep one of them"))
                continue
            data[name], places.children[name] = value, place
        return data, places

    def _items(self, node: Any) -> Iterator[tuple[str, Mark, Any]]:
        """Keys, their marks and their values; a problem for every key that is not text."""
        for key_node, child in node.value:
            mark = self._mark(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(str(mark), "a list or a mapping stands as a key, but keys are text"))
            elif key_node.value == "<<" and key_node.style in (None, ""):
                message = "merge keys ('<<') are not part of YAML 1.2"
                self.problems.append(Problem(str(mark), message, "repeat the keys, or use 'extends' in a suite"))
            else:
                name = self._scalar(key_node)
                if isinstance(name, str):
                    yield name, mark, child
                    continue
                message = f"the key {key_node.value!r} is {found(name)}, but keys are text"
                self.problems.append(Problem(str(mark), message, f"write '{key_node.value}' in quotes"))

    def _check_tag(self, node: Any, *allowed: str) -> bool:
        tag: str = node.tag
        if tag in allowed:
            return True
        shown = "!!" + tag.removeprefix("tag:yaml.org,2002:") if tag.startswith("tag:yaml.org,2002:") else tag
        message = f"the tag {shown} is not accepted: files hold plain values and never run code"
        if tag in (_STR, _INT, _FLOAT, _BOOL, _NULL, _MAP, _SEQ):
            message = f"the tag {shown} does not fit this value"
        self.problems.append(Problem(str(self._mark(node.start_mark)), message, "remove the tag"))
        return False

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        if not self._check_tag(node, _STR, *_KINDS):
            return text
        try:
            return core_scalar(text, node.tag)
        except ValueError as error:
            self.problems.append(Problem(str(self._mark(node.start_mark)), str(error)))
            return text

    def _syntax(self, error: yaml.MarkedYAMLError) -> Problem:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            return Problem(self.file, f"this is not YAML: {error}")
        lines = self.text.split("\n")
        line = lines[mark.line] if mark.line < len(lines) else ""
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent:
            place = str(Mark(self.file, mark.line + 1, indent.index("\t") + 1))
            return Problem(
                place, "a tab indents this line, but YAML is indented with spaces", "replace it by two spaces"
            )
        whole = f"{error.context or ''} | {error.problem or ''}"
        unknown = ("", f"this is not YAML: {error.problem or error.context}", "")
        _, message, hint = next((known for known in _SYNTAX if known[0] in whole), unknown)
        since = error.context_mark
        if since is not None and since.line != mark.line:
            message += f" (it begins in line {since.line + 1})"
        return Problem(str(self._mark(mark)), message, hint)


_SYNTAX: tuple[tuple[str, str, str], ...] = (
    (
        "mapping values are not allowed",
        "a ':' follows where no key can stand",
        "put text with ': ' in quotes, or check the indentation of this line and of the one before",
    ),
    ("did not find expected ',' or ']'", "a list that begins with '[' is not closed by ']'", ""),
    ("did not find expected ',' or '}'", "a mapping that begins with '{' is not closed by '}'", ""),
    ("while scanning a quoted scalar | found unexpected end", "the text in quotes is not closed", "add the quote"),
    ("while scanning a simple key", "this line is no 'key: value'", "add ':' and a value, or '- ' for a list item"),
    ("found undefined alias", "this alias refers to no anchor", "define it before with '&name'"),
    ("found duplicate anchor", "the same anchor is defined twice", "rename one of them"),
    (
        "found unknown escape",
        "this escape is unknown in double quotes",
        "use single quotes, or write the backslash twice",
    ),
    (
        "did not find expected '-' indicator",
        "a list item or the end of the list was expected",
        "align this line with the '-' of the list, or with the key that the list belongs to",
    ),
    (
        "did not find expected key",
        "a key of the mapping or its end was expected",
        "align this line with the other keys",
    ),
    (
        "found character that cannot start any token",
        "this character cannot begin a value",
        "put the text in quotes",
    ),
)


def core_scalar(text: str, tag: str) -> Any:
    """Value of a scalar whose tag is resolved (YAML 1.2.2, section 10.3.2). Raises ``ValueError`` with a sentence."""
    if tag == _STR:
        return text
    if not _PATTERNS[tag].match(text):
        raise ValueError(f"{text!r} is not {_KINDS[tag]}, which its tag asks for")
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _FLOAT:  # Python writes the infinities and NaN without the dot
        return float(text if text[-1] in "0123456789." else text.lower().replace(".", ""))
    if len(text) > 1000:
        raise ValueError(f"a whole number of {len(text):,} digits is too long")
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)

"""Objects in the text of a language model: JSON, Python dictionaries, and what is close enough to be read without a guess.

Read: any quotes, typographic ones too, or none around names and values; a quote inside a quoted text that nobody escaped; a
comma too many, or a line break where one is missing; comments; nested objects and lists. A scalar is its text, quoted or not.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

MOST_OBJECTS = 500
"""A reply in which more objects begin is not looked at: malformed ones cost time, and no judge's reply has so many."""
LONGEST_TEXT = 10_000
"""Characters of a quoted text."""
DEEPEST = 16

_CLOSERS = {
    '"': '"', "'": "'", "`": "`'", "＂": "＂", "＇": "＇", "«": "»", "»": "«", "‹": "›", "›": "‹", "「": "」", "『": "』",
    **dict.fromkeys("“”„‟", "“”„‟\""), **dict.fromkeys("‘’‚‛", "‘’‚‛'"),
}  # fmt: skip
"""By opening quote: what may close it."""
_CANDIDATES = {opening: re.compile(rf"\\.|[{re.escape(closers)}]", re.DOTALL) for opening, closers in _CLOSERS.items()}
_TYPOGRAPHIC = "".join(_CLOSERS).replace('"', "").replace("'", "")

_SPACE = r"(?:\s|(?://|\#)[^\n]{0,200}+(?=\n|\Z))*+"
_QUOTED_NAME = (
    r'"(?:[^"\\\n]|\\.){0,400}"'
    r"|'(?:[^'\\\n]|\\.){0,400}'"
    rf"|[{_TYPOGRAPHIC}][^{{}}\n{_TYPOGRAPHIC}]{{0,400}}[{_TYPOGRAPHIC}\"']"
)
_BARE_NAME = r"\**[\w.-][\w .*-]{0,100}"
_IS = rf"{_SPACE}(?:[:：]|=>?)"
_NAME = rf"(?:{_QUOTED_NAME}|{_BARE_NAME}){_IS}"
_AFTER_VALUE = rf"{_SPACE}(?:\}}|[,，;]{_SPACE}(?:\}}|{_NAME})|(?:{_QUOTED_NAME}){_IS})"

_SKIP = re.compile(_SPACE)
_FIELD = re.compile(rf"(?P<name>{_QUOTED_NAME}|{_BARE_NAME}){_IS}{_SPACE}", re.DOTALL)
_UNFINISHED_NAME = re.compile(r"""(?:"(?:[^"\\\n]|\\.?)*+|'(?:[^'\\\n]|\\.?)*+)[\s`]*\Z""")
_BEGIN = re.compile(rf"\{{{_SPACE}{_NAME}", re.DOTALL)
_BARE = re.compile(r"""(?:(?!//)[^,，;{}\[\]"“”„‟`\n#])+""")
_BARE_ITEM = re.compile(r"""(?:(?!//)[^,，;{}\[\]()"“”„‟`\n#])+""")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_CLOSING = {"[": "]", "(": ")"}


@dataclass(frozen=True)
class _Place:
    """Where a value may stand."""

    ends: re.Pattern[str]
    """What follows it."""
    bare: re.Pattern[str]
    """A value without quotes."""


_IN_FIELD = _Place(re.compile(_AFTER_VALUE, re.DOTALL), _BARE)
_IN_LIST = _Place(re.compile(rf"{_SPACE}[,，\])]"), _BARE_ITEM)


@dataclass(frozen=True)
class Fields:
    """The fields of an object in their order, a name as often as it is there."""

    pairs: tuple[tuple[str, "Value"], ...]

    def named(self, name: str) -> list["Value"]:
        """Return the values of a field, whatever the case of its name."""
        return [value for found, value in self.pairs if found.casefold() == name]

    def with_field(self, name: str) -> Iterator["Fields"]:
        """Yield this object if it has the field, else those inside it that do."""
        if self.named(name):
            yield self
            return
        for _, value in self.pairs:
            yield from _inner(value, name)


Value: TypeAlias = "str | Fields | tuple[Value, ...]"
"""A scalar as its text, an object, or a list."""


@dataclass(frozen=True)
class Malformed:
    """An object that begins and cannot be read."""

    text: str
    """From its brace to where the next object begins."""
    cut_short: bool
    """Whether the text ends before the object does."""


class _MalformedError(Exception):
    """What is there is no object."""


class _CutShortError(_MalformedError):
    """The text ends before the object does."""


def _inner(value: Value, name: str) -> Iterator[Fields]:
    if isinstance(value, Fields):
        yield from value.with_field(name)
    elif isinstance(value, tuple):
        for item in value:
            yield from _inner(item, name)


def objects(text: str) -> Iterator[Fields | Malformed]:
    """Yield the objects of a text in their order; those inside another are among its values.

    One that cannot be read is yielded as such, and what begins behind its brace is tried by itself.
    """
    at, count = 0, 0
    while (begin := _BEGIN.search(text, at)) is not None and count < MOST_OBJECTS:
        count += 1
        try:
            fields, at = _Reader(text).fields(begin.start(), 0)
        except _MalformedError as error:
            at = begin.start() + 1
            following = _BEGIN.search(text, at)
            upto = len(text) if following is None else following.start()
            yield Malformed(text[begin.start() : upto], isinstance(error, _CutShortError))
        else:
            yield fields
    last = text.rfind("{")
    if begin is not None or last > max(at - 1, text.rfind("}")):
        yield Malformed(text[max(at, last) :], cut_short=True)


class _Reader:
    """Reads values of one text. Each method takes where a value begins and returns it with where it ends."""

    def __init__(self, text: str) -> None:
        self.text = text

    def fields(self, at: int, depth: int) -> tuple[Fields, int]:
        pairs: list[tuple[str, Value]] = []
        at = self._skip(at + 1)
        while self.text[at : at + 1] != "}":
            field = _FIELD.match(self.text, at)
            if field is None:
                raise self._error(at)
            value, at = self._value(field.end(), depth + 1, _IN_FIELD)
            pairs.append((_name(field["name"]), value))
            at = self._past_separator(at)
        return Fields(tuple(pairs)), at + 1

    def _past_separator(self, at: int) -> int:
        """Return where the next field or the closing brace is. Raises where neither may follow."""
        if _IN_FIELD.ends.match(self.text, at) is None:
            raise self._error(at)
        at = self._skip(at)
        return self._skip(at + 1) if self.text[at] in ",，;" else at

    def _value(self, at: int, depth: int, place: _Place) -> tuple[Value, int]:
        if depth > DEEPEST:
            raise _MalformedError
        first = self.text[at : at + 1]
        if first == "{":
            return self.fields(at, depth)
        if first in _CLOSING:
            return self._items(at, depth)
        return self._quoted(at, place) if first in _CLOSERS else self._bare(at, place)

    def _items(self, at: int, depth: int) -> tuple[tuple[Value, ...], int]:
        closing, items = _CLOSING[self.text[at]], list[Value]()
        at = self._skip(at + 1)
        while self.text[at : at + 1] != closing:
            value, at = self._value(at, depth + 1, _IN_LIST)
            items.append(value)
            at = self._skip(at)
            if self.text[at : at + 1] in (",", "，"):
                at = self._skip(at + 1)
            elif self.text[at : at + 1] != closing:
                raise self._error(at)
        return tuple(items), at + 1

    def _quoted(self, at: int, place: _Place) -> tuple[str, int]:
        """Read up to the first closing quote behind which the field ends: others are part of the text."""
        for found in _CANDIDATES[self.text[at]].finditer(self.text, at + 1, at + 1 + LONGEST_TEXT):
            if found[0][0] != "\\" and place.ends.match(self.text, found.end()):
                return _ESCAPE.sub(_unescaped, self.text[at + 1 : found.start()]), found.end()
        raise _CutShortError if len(self.text) <= at + 1 + LONGEST_TEXT else _MalformedError

    def _bare(self, at: int, place: _Place) -> tuple[str, int]:
        found = place.bare.match(self.text, at)
        if found is None:
            raise self._error(at)
        return found[0].strip(), found.end()

    def _skip(self, at: int) -> int:
        found = _SKIP.match(self.text, at)
        return found.end() if found else at

    def _error(self, at: int) -> _MalformedError:
        """Return the error for what stands at a place: a text that ends before the object can, or what may not stand there."""
        unfinished = "}" not in self.text[at:] or _UNFINISHED_NAME.match(self.text, at)
        return _CutShortError() if unfinished else _MalformedError()


def _name(written: str) -> str:
    """Return a field's name without its quotes and the marks of bold text."""
    return written.strip("".join(_CLOSERS) + " \t*")


def _unescaped(found: re.Match[str]) -> str:
    kind = found[1]
    return chr(int(kind[1:], 16)) if len(kind) > 1 else " " if kind in "nrt" else kind

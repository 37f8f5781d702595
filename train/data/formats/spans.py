"""Spans of a text to words and their tags, which say the same to the character.

Words are those that a model reads (`modeling/windows.py`), cut once more where a span begins or
ends inside of one. What cannot be said by tags is told with its row: spans that overlap, are empty,
lie outside of their text, or do not hold what they say they do.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal

from ....modeling.tags import Entity, write_tags
from ....modeling.windows import Span, split_words
from .base import Format, Row, shown

Offsets = Literal["characters", "bytes", "utf16"]
OFFSETS: tuple[Offsets, ...] = ("characters", "bytes", "utf16")
STARTS = ("start", "start_offset", "begin", "start_char")
ENDS = ("end", "end_offset", "end_char")
LABELS = ("label", "labels", "entity_group", "type", "tag")
SURFACES = ("text", "word")
WANTED = (
    "spans are {start: 0, end: 5, label: PER} or [0, 5, PER], start and end whole numbers, the "
    "label a string"
)
SHOWN = 3


def bounds(text: str, offsets: Offsets) -> list[int] | None:
    """Where each character begins, and the end, counted as `offsets` says; None: as characters."""
    if offsets == "characters" or text.isascii():
        return None
    if offsets == "bytes":
        sizes: Iterable[int] = (len(c.encode("utf-8", "surrogatepass")) for c in text)
    else:
        sizes = (2 if ord(c) > 0xFFFF else 1 for c in text)
    return list(accumulate(sizes, initial=0))


def read_spans(value: Any) -> list[tuple[int, int, str, str | None]]:
    """(start, end, label, what the span says that it holds) of a list of spans.

    Raises:
        ValueError: it is no list of spans.
    """
    if isinstance(value, dict) and value and all(isinstance(x, list) for x in value.values()):
        value = [dict(zip(value, span, strict=True)) for span in zip(*value.values(), strict=True)]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{WANTED}, in a list, but {shown(value)}")
    return [part for span in value for part in _read_span(span)]


def _read_span(span: Any) -> list[tuple[int, int, str, str | None]]:
    surface = None
    if isinstance(span, dict):
        start, end, labels = (_first(span, keys) for keys in (STARTS, ENDS, LABELS))
        surface = _first(span, SURFACES)
    elif isinstance(span, (list, tuple)) and len(span) >= 3:
        start, end, labels = span[:3]
        if isinstance(start, str):  # as older versions of argilla have it
            labels, start, end = span[:3]
    else:
        raise ValueError(f"{WANTED}, but {shown(span)}")
    labels = labels if isinstance(labels, list) else [labels]
    numbers = all(isinstance(x, int) and not isinstance(x, bool) for x in (start, end))
    if not numbers or not labels or not all(isinstance(x, str) and x.strip() for x in labels):
        raise ValueError(f"{WANTED}, but {shown(span)}")
    if "O" in labels:
        raise ValueError(f"a span has the label 'O', which means no label: {shown(span)}")
    return [(start, end, x, surface if isinstance(surface, str) else None) for x in labels]


def _first(span: Row, keys: Sequence[str]) -> Any:
    return next((span[key] for key in keys if span.get(key) is not None), None)


@dataclass
class _Told:
    """Rows with one kind of oddity: how many, and the first."""

    count: int = 0
    rows: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        self.count += 1
        if len(self.rows) < SHOWN:
            self.rows.append(line)

    def __str__(self) -> str:
        more = f"; and {self.count - len(self.rows):,} more" if self.count > len(self.rows) else ""
        return "; ".join(self.rows) + more


@dataclass
class SpanReader:
    """Spans of the rows of a split as tags of words; what is odd is kept, to be told.

    Args:
        offsets: what start and end count.
        overlap: error, or longest: of spans that overlap the longest counts, the first of equals,
            and empty ones are left out.
        scheme: of the tags.
    """

    offsets: Offsets = "characters"
    overlap: Literal["error", "longest"] = "error"
    scheme: str = "iob2"
    faults: _Told = field(default_factory=_Told)
    left_out: _Told = field(default_factory=_Told)
    inside: _Told = field(default_factory=_Told)
    blank: _Told = field(default_factory=_Told)

    def read(self, row: int, text: Any, value: Any) -> tuple[list[str] | None, list[str] | None]:
        """Words and tags of a row; None where it has no spans, or no text.

        Args:
            row: its number.
            text: its text.
            value: its spans.
        """
        if not isinstance(text, str) or value is None:
            return None, None
        try:
            entities = self._entities(row, text, read_spans(value))
        except ValueError as error:
            self.faults.add(f"row {row}: {error} in {shown(text)}")
            return None, None
        words = split_words(text)
        self._tell_inside(row, text, words, entities)
        words = cut_words(words, {position for _, *ends in entities for position in ends})
        return [text[a:b] for a, b in words], write_tags(entities, words, self.scheme)

    def _entities(
        self, row: int, text: str, spans: list[tuple[int, int, str, str | None]]
    ) -> list[Entity]:
        """Checked, in characters, from left to right."""
        places = bounds(text, self.offsets)
        entities = []
        for start, end, label, surface in spans:
            first, last = self._characters(text, places, start, end, label, surface)
            inner = text[first:last].strip()
            name = f"row {row}: span {start}-{end} ({label}) in {shown(text)}"
            if not inner:
                if self.overlap == "error":
                    raise ValueError(
                        f"span {start}-{end} ({label}) is empty (overlap: longest leaves it out)"
                    )
                self.left_out.add(name)
                continue
            if len(inner) < last - first:
                self.blank.add(name)
                first += text[first:last].find(inner)
                last = first + len(inner)
            entities.append((label, first, last))
        return self._apart(row, text, entities)

    def _characters(
        self,
        text: str,
        places: list[int] | None,
        start: int,
        end: int,
        label: str,
        surface: str | None,
    ) -> Span:
        named = f"span {start}-{end} ({label})"
        length = len(text) if places is None else places[-1]
        if not 0 <= start <= end <= length:
            other = [way for way in OFFSETS if _fits(text, start, end, surface, way)]
            hint = f" (do offsets count {other[0]}? write offsets: {other[0]})" if other else ""
            raise ValueError(
                f"{named} lies outside of the text, which has {length} {self._unit}{hint}"
            )
        if places is not None:
            first, last = bisect_right(places, start) - 1, bisect_right(places, end) - 1
            if places[first] != start or places[last] != end:
                raise ValueError(
                    f"{named} begins or ends within a character of several {self._unit}"
                )
            start, end = first, last
        if surface is not None and _bare(text[start:end]) != _bare(surface):
            other = [way for way in OFFSETS if _fits(text, start, end, surface, way)]
            hint = f"; write offsets: {other[0]}" if other and places is None else ""
            raise ValueError(
                f"{named} holds {shown(text[start:end], 30)}, but says {shown(surface, 30)}{hint}"
            )
        return start, end

    @property
    def _unit(self) -> str:
        return {"utf16": "UTF-16 units"}.get(self.offsets, self.offsets)

    def _apart(self, row: int, text: str, entities: list[Entity]) -> list[Entity]:
        """Entities that do not overlap."""
        ordered = sorted(entities, key=lambda entity: (entity[1], entity[2]))
        clash = [(a, b) for a, b in pairwise(ordered) if b[1] < a[2]]
        if not clash:
            return ordered
        if self.overlap == "error":
            (one, *a), (other, *b) = clash[0]
            raise ValueError(
                f"spans {a[0]}-{a[1]} ({one}) and {b[0]}-{b[1]} ({other}) overlap (overlap: "
                "longest takes the longer one)"
            )
        chosen: list[Entity] = []
        for entity in sorted(entities, key=lambda entity: (entity[1] - entity[2], entity[1])):
            label, start, end = entity
            if any(start < b and a < end for _, a, b in chosen):
                name = f"{start}-{end} {shown(text[start:end], 30)} ({label})"
                self.left_out.add(f"row {row}: {name} in {shown(text)}")
            else:
                chosen.append(entity)
        return sorted(chosen, key=lambda entity: entity[1])

    def _tell_inside(self, row: int, text: str, words: list[Span], entities: list[Entity]) -> None:
        edges = {position for word in words for position in word}
        for label, start, end in entities:
            if start in edges and end in edges:
                continue
            around = [w for w in words if w[0] < end and start < w[1]]
            word = text[around[0][0] : around[-1][1]]
            self.inside.add(f"row {row}: {shown(text[start:end], 30)} ({label}) of {shown(word)}")


def _fits(text: str, start: int, end: int, surface: str | None, offsets: Offsets) -> bool:
    places = bounds(text, offsets)
    if places is None or start not in places or end not in places:
        return False
    part = text[places.index(start) : places.index(end)]
    return bool(part.strip()) and (surface is None or _bare(part) == _bare(surface))


def _bare(text: str) -> str:
    r"""Without white space, nor the \n that Label Studio writes for a line break."""
    return "".join(text.replace("\\n", "").split())


def cut_words(words: list[Span], places: set[int]) -> list[Span]:
    """Words cut in two wherever one of the places lies inside of one."""
    ordered, parts = sorted(places), []
    for start, end in words:
        inner = ordered[bisect_right(ordered, start) : bisect_left(ordered, end)]
        parts += pairwise([start, *inner, end])
    return parts


SPANS = Format(tags="spans", unwraps=False)

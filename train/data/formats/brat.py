"""brat standoff: a `.txt` for each document, and beside it an `.ann` with its spans.

Lines `T` are spans; relations, events, attributes and notes say nothing of words, and are not read.
A document without an `.ann` is not labelled; an empty one says that nothing is there.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from ..text_files import lines_of
from .base import Format, Row, shown

LINE = re.compile(r"T\d+\t(\S+) ([\d ;]+)(?:\t(.*))?")
OTHERS = "REAMNW#*"  # first letters of lines that are no spans


def read_brat(files: Sequence[Path]) -> dict[str, list]:
    """Columns `text`, `spans` and `document` of folders, or of `.txt` files.

    Raises:
        OSError: a file cannot be read.
        ValueError: there is no `.txt`, or a line of an `.ann` is no annotation; with the line.
    """
    documents: list[Path] = []
    for path in files:
        paths = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not paths:
            raise ValueError(f"{path}: a folder without .txt files")
        documents += [file for file in paths if file.suffix == ".txt"]
        if alone := [p for p in paths if p.suffix not in (".txt", ".ann")]:
            raise ValueError(f"{alone[0]}: brat has .txt files, with .ann files beside them")
        if path.is_dir():
            for ann in sorted(path.rglob("*.ann")):
                if not ann.with_suffix(".txt").is_file():
                    raise ValueError(f"{ann}: there is no {ann.with_suffix('.txt').name} beside it")
    return {
        "text": ["".join(lines_of(file)) for file in documents],
        "spans": [_spans(file.with_suffix(".ann")) for file in documents],
        "document": [file.stem for file in documents],
    }


def _spans(path: Path) -> list[Row] | None:
    if not path.is_file():
        return None
    spans = []
    for number, line in enumerate(lines_of(path), 1):
        line = line.rstrip("\r\n")
        if not line.strip() or line[0] in OTHERS:
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f'{path.name}, line {number}: no annotation: {shown(line)}; "T1<tab>PER 0 5<tab>'
                'words" is wanted'
            )
        label, places, words = match.groups()
        if ";" in places:
            raise ValueError(
                f"{path.name}, line {number}: a span of several parts, which tags cannot say: "
                f"{shown(line)}; write it as one part, or several annotations"
            )
        ends = places.split()
        if len(ends) != 2:
            raise ValueError(f"{path.name}, line {number}: no start and end: {shown(line)}")
        start, end = map(int, ends)
        spans.append({"start": start, "end": end, "label": label, "text": words})
    return spans


BRAT = Format(read_files=read_brat, tags="spans", label=None)

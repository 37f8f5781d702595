"""CoNLL: a word and its labels in each line, a blank line after each sentence.

Columns are parted by tabs, or else by spaces and tabs. `-DOCSTART-` lines part documents and hold
no word. Comments stand before the first word of a sentence; those of the form `# name = value` or
`# name: value` are columns of the sentence. Files of Universal Dependencies (`.conllu`) and of
CoNLL-U Plus (`# global.columns = ...`) have names for their columns; others have numbers from 0.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..text_files import PACKED_ENDINGS, lines_of
from .base import Format, shown

CONLLU = ["id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc"]
FIELD = re.compile(r"#+\s*([\w.-]+)\s*(?:=|:(?=\s|$))\s*(.*)")
GLOBAL = "global.columns"
BLANKS = re.compile(r"[ \t]+")
NO_WORD = re.compile(r"\d+[-.]\d+")  # ids of several words in one, and of words that are not there


@dataclass
class _Sentence:
    """Cells of the words, and what comments say."""

    words: list[list[str]] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def read_conll(files: Sequence[Path]) -> dict[str, list]:
    """Columns of all files: lists of cells by number, or name, and strings of comments.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is no CoNLL; with the line.
    """
    names: list[str] | None = None
    sentences: list[_Sentence] = []
    for file in files:
        of_file, rows = _read_file(file)
        if names is not None and of_file != names:
            raise ValueError(
                f"{file.name} has {len(of_file)} columns ({', '.join(of_file)}), "
                f"but {files[0].name} has {len(names)} ({', '.join(names)})"
            )
        names = of_file
        sentences += rows
    names = names or []
    columns: dict[str, list] = {
        name: [[word[number] for word in sentence.words] for sentence in sentences]
        for number, name in enumerate(names)
    }
    for key in dict.fromkeys(key for sentence in sentences for key in sentence.fields):
        if key not in columns:
            columns[key] = [sentence.fields.get(key) for sentence in sentences]
    return columns


def column_name(names: list[str], name: str) -> str:
    """The column that a name, or a number from 0 (from the end where negative), means.

    Args:
        names: of all columns.
        name: what the recipe says.
    """
    if name in names or not re.fullmatch(r"-?\d+", name):
        return name
    number = int(name)
    return names[number] if -len(names) <= number < len(names) else name


def _read_file(path: Path) -> tuple[list[str], list[_Sentence]]:
    lines = [line.rstrip("\r\n") for line in lines_of(path)]
    words = [line for line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))]
    if not words:
        raise ValueError(f"{path.name}: no line with a word")
    tabs = all("\t" in line.strip(" ") for line in words)
    width = len(_cells(words[0], tabs))
    names = _names(path, lines, width)
    sentences = list(_sentences(path, lines, tabs, width))
    if names[:2] == CONLLU[:2]:
        for sentence in sentences:
            sentence.words = [word for word in sentence.words if not NO_WORD.fullmatch(word[0])]
    return names, sentences


def _names(path: Path, lines: list[str], width: int) -> list[str]:
    """Names of the columns, else their numbers."""
    for line in lines:
        comment = FIELD.fullmatch(line)
        if comment and comment[1] == GLOBAL:
            names = comment[2].lower().split()
            if len(names) != width or len(set(names)) < width:
                raise ValueError(
                    f"{path.name}: {len(names)} names in {line!r:.80}, {width} columns"
                )
            return names
        if line.strip() and comment is None:
            break
    name = path.name
    for packed in PACKED_ENDINGS:
        name = name.removesuffix(packed)
    if name.endswith(".conllu") and width == len(CONLLU):
        return list(CONLLU)
    return [str(number) for number in range(width)]


def _sentences(path: Path, lines: list[str], tabs: bool, width: int) -> Iterator[_Sentence]:
    sentence = _Sentence()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if sentence.words:
                yield sentence
            if sentence.words or not line.strip():
                sentence = _Sentence()
            continue
        if line.startswith("#") and not sentence.words and _is_comment(line, tabs, width):
            comment = FIELD.fullmatch(line)
            if comment and comment[1] != GLOBAL:
                sentence.fields[comment[1]] = comment[2].strip()
            continue
        cells = _cells(line, tabs)
        if len(cells) != width:
            parts = "tabs" if tabs else "spaces"
            raise ValueError(
                f"{path.name}, line {number}: {len(cells)} columns, but {width} in the first line "
                f"with a word: {shown(line)}; columns are parted by {parts}, comments begin with # "
                "before a sentence"
            )
        if not all((cells[0], cells[-1])):
            raise ValueError(f"{path.name}, line {number}: an empty column: {shown(line)}")
        sentence.words.append(cells)
    if sentence.words:
        yield sentence


def _cells(line: str, tabs: bool) -> list[str]:
    if tabs:
        return [cell.strip(" ") for cell in line.strip(" ").split("\t")]
    return BLANKS.split(line.strip(" \t"))


def _is_comment(line: str, tabs: bool, width: int) -> bool:
    """A line that begins with # may be a word too, as in tweets."""
    return len(_cells(line, tabs)) != width or (not tabs and FIELD.fullmatch(line) is not None)


CONLL = Format(read_files=read_conll, text=None, tokens="0", tags="-1", label=None, spans=False)

"""Tags of token tasks as the data has them: marks for no label, schemes, what breaks them.

A tag is a string or a class id. null, -1 and -100 are words without a label; a row may have none at
all. Entities are read from IOB1, IOB2 and BIOES; BILOU and BMES are the latter in other letters.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import datasets

from ...modeling.configuration_polyhead import scheme_of
from ...modeling.decoding import gold_entities, is_sign, unit_tags
from ...modeling.tags import legal_transitions
from ...modeling.windows import split_words
from ..kinds.tokens import row_words, tags_in
from ..recipe.schema import TaskRecipe
from .source import with_column

SHOWN = 10  # tags named in a fault
OTHER_LETTERS = {"L": "E", "U": "S", "M": "I", "W": "S"}  # BILOU, BMES, BMEWO
MARKED = re.compile(r"[BIESLUMW]-.+", re.DOTALL)
PARTS = r"[-\u2010-\u2015\u2212_:./| ]"  # hyphens, dashes and a minus sign among them
LOOKS_MARKED = re.compile(  # entities in a notation that is not known: B, B-, B_per, b-per, per-B
    rf"[BIESLU]-?|[BIESLU]{PARTS}.+|[bieslu]{PARTS}.+|.+{PARTS}[BIESLU]|[bieslu]", re.DOTALL
)
REPAIR = {
    "iob1": "in iob1 B-x only parts two neighbouring entities x, elsewhere they begin with I-x",
    "iob2": "in iob2 every entity begins with B-x: write it for an I-x that goes on from no x",
    "bioes": "in bioes an entity is S-x, or B-x, as many I-x as it takes, and E-x",
}


@dataclass
class TagSet:
    """What the tags of a task are.

    Args:
        counts: how often each tag occurs in train, those of parts of words included.
        scheme: the tag scheme that all rows follow; None for tags that stand alone.
        signs: signs that entities of train begin or end with, see `TaskConfig`; None without
            entities.
        renamed: tags that are read as others.
        notes: what a user should know of how the tags were read.
        faults: why they cannot be read.
    """

    counts: Counter[str] = field(default_factory=Counter)
    scheme: str | None = None
    signs: list[str] | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def find_tags(
    name: str, task: TaskRecipe, splits: dict[str, datasets.Dataset], text: str | None
) -> TagSet:
    """The tags of a token task; its column in `splits` is brought to strings and null.

    Args:
        name: of the task.
        task: as the recipe has it.
        splits: checked rows.
        text: column of the text; None where the words are joined by spaces.
    """
    column = str(task.data.label)
    rows = {split: [tags_in(row) for row in part[:][column]] for split, part in splits.items()}
    seen = {tag for part in rows.values() for row in part for tag in row or [] if tag is not None}
    tag_set = TagSet(renamed=_other_names(seen | {str(label) for label in task.labels or []}))
    feature = datasets.List(datasets.Value("string"))
    for split, part in rows.items():
        part[:] = [
            None if row is None else [tag_set.renamed.get(str(tag), tag) for tag in row]
            for row in part
        ]
        splits[split] = with_column(splits[split], column, part, feature)
    if renamed := sorted(tag_set.renamed.keys() & seen):
        pairs = ", ".join(f"{tag} as {tag_set.renamed[tag]}" for tag in renamed[:5])
        more = f" and {len(renamed) - 5} more" if len(renamed) > 5 else ""
        tag_set.notes.append(f"{name}: tags are read in the letters of bioes: {pairs}{more}")
    tag_set.counts.update(tag for row in rows["train"] for tag in row or [] if tag is not None)
    _find_scheme(name, task, rows, tag_set)
    if tag_set.scheme is not None and not tag_set.faults:
        _add_parts(task, text, splits["train"], rows["train"], tag_set)
    return tag_set


def _other_names(tags: set[str]) -> dict[str, str]:
    """Tags that mean another one: I-O is O, as in CoNLL-2003; L- and U- of BILOU are E- and S-."""
    renamed = {tag: "O" for tag in tags if re.fullmatch(r"[BIES]-O", tag)}
    marked = tags - renamed.keys() - {"O"}
    letters = {tag[0] for tag in marked}
    bilou = letters & set("LU") and letters <= set("BILU")
    bmes = letters & set("MW") and letters <= set("BMEWSI") and letters & set("BE")
    if marked and all(MARKED.fullmatch(tag) for tag in marked) and (bilou or bmes):
        for tag in marked:
            if tag[0] in OTHER_LETTERS:
                renamed[tag] = OTHER_LETTERS[tag[0]] + tag[1:]
    return renamed


def _find_scheme(
    name: str, task: TaskRecipe, rows: dict[str, list[list[str | None] | None]], tag_set: TagSet
) -> None:
    """The tag scheme that all rows follow, else every tag that breaks the nearest one."""
    key = f"tasks.{name}.data.label"
    tags = set(tag_set.counts)
    marked = {tag for tag in tags if tag[:2] in ("B-", "I-", "E-", "S-") and len(tag) > 2}
    if scheme_of(sorted(tags)) is None:
        odd = sorted(tags - marked - {"O"})
        if marked and task.scheme is None and len(marked) > len(odd):
            tag_set.faults.append(
                f"{key}: tags {', '.join(odd[:5])} stand beside {', '.join(sorted(marked)[:5])}; "
                "a tag is O or begins with B-, I-, E- or S-"
            )
        elif odd and (marked or all(LOOKS_MARKED.fullmatch(tag) for tag in tags - {"O", "o"})):
            named = ", ".join(sorted(tags - {"O"})[:5])
            tag_set.notes.append(
                f"{name}: tags {named} are taken as labels of single words, scored by "
                "token_accuracy; to find entities, write them as B-x, I-x and O (iob2), or as iob1,"
                " bioes or bilou"
            )
        return
    marks = {tag[:2] for tag in marked}
    if foreign := _foreign(rows, marks):
        tag_set.faults.append(f"{key}: {foreign}")
        return
    possible = ["bioes"] if marks & {"E-", "S-"} else ["iob1", "iob2"]
    broken = {s: _breaks(rows, s) for s in ([task.scheme] if task.scheme else possible)}
    for scheme, breaks in broken.items():
        if not any(breaks.values()):
            tag_set.scheme = scheme
            return
    fewest = min(reversed(broken), key=lambda scheme: sum(map(len, broken[scheme].values())))
    told = []
    for split, breaks in broken[fewest].items():
        if breaks:
            times = f" {len(breaks):,} times" if len(breaks) > 1 else ""
            more = f"; and {len(breaks) - SHOWN:,} more" if len(breaks) > SHOWN else ""
            rows_told = "; ".join(breaks[:SHOWN])
            told.append(f"{split} breaks the tag scheme {fewest}{times}: {rows_told}{more}")
    tag_set.faults.append(f"{key}: {'. '.join(told)}. Mend the tags: {REPAIR[fewest]}")


def _foreign(rows: dict[str, list[list[str | None] | None]], marks: set[str]) -> str | None:
    """Tags of other splits in another notation than that of train, which would be read as O."""
    allowed = {"B-", "I-", "E-", "S-"} if marks & {"E-", "S-"} else {"B-", "I-"}
    for split, part in rows.items():
        seen = {tag for row in part for tag in row or [] if tag is not None} - {"O"}
        odd = sorted(tag for tag in seen if tag[:2] not in allowed or len(tag) < 3)
        if odd:
            return (
                f"{split} has tags {', '.join(odd[:5])}, but those of train are O or begin with "
                f"{', '.join(sorted(marks))}; write all splits in one notation"
            )
    return None


def _breaks(rows: dict[str, list[list[str | None] | None]], scheme: str) -> dict[str, list[str]]:
    """By split, each tag that may not stand where it does; words without a label bar nothing."""
    labels = sorted({tag for part in rows.values() for row in part for tag in row or [] if tag})
    index = {label: i for i, label in enumerate(labels)}
    starts, pairs, ends = (part.tolist() for part in legal_transitions(labels, scheme))
    broken: dict[str, list[str]] = {}
    for split, part in rows.items():
        broken[split] = []
        for number, row in enumerate(part):
            ids = [None if tag is None else index[tag] for tag in row or []]
            if not ids:
                continue
            wrong = []
            if ids[0] is not None and not starts[ids[0]]:
                wrong.append((0, repr(labels[ids[0]]), "the start"))
            for word in range(1, len(ids)):
                before, tag = ids[word - 1], ids[word]
                if before is not None and tag is not None and not pairs[before][tag]:
                    wrong.append((word, repr(labels[tag]), repr(labels[before])))
            if ids[-1] is not None and not ends[ids[-1]]:
                wrong.append((len(ids), "the end", repr(labels[ids[-1]])))
            broken[split] += [
                f"row {number}, word {word}: {tag} cannot follow {before}"
                for word, tag, before in wrong
            ]
    return broken


def _add_parts(
    task: TaskRecipe,
    text: str | None,
    train: datasets.Dataset,
    rows: list[list[str | None] | None],
    tag_set: TagSet,
) -> None:
    """Tags that only appear once words are cut into parts, and signs at the ends of entities."""
    signs: set[str] = set()
    scheme = str(tag_set.scheme)
    for (row_text, words), tags in zip(row_words(task.data, text, train[:]), rows, strict=True):
        if tags is None or not any(tag not in (None, "O") for tag in tags):
            continue
        parts = [[word] for word in split_words(row_text)]
        written = unit_tags(row_text, parts, words, tags, scheme)
        tag_set.counts.update(tag for tag in set(written) - set(tags) if tag is not None)
        for kind, start, end in gold_entities(row_text, words, tags, scheme):
            entity = row_text[start:end]
            edges = split_words(entity)
            signs |= {entity[a:b] for a, b in edges[:1] + edges[-1:] if is_sign(entity[a:b])}
            if scheme == "bioes" and len(edges) > 1 and not re.search(r"\s", entity):
                tag_set.counts[f"S-{kind}"] += 1  # its words may share one sub-token
    tag_set.signs = sorted(signs)


def tag_faults(where: str, values: list, words: list, rows_of: Any) -> list[str]:
    """Faults of the tags of a split: no lists of tags, or not one for each word.

    Args:
        where: where the column stands, for the message.
        values: of the column of tags.
        words: of the column of words.
        rows_of: row numbers to how they are named.
    """
    bad = [i for i, row in enumerate(values) if row is not None and not _is_list_of_tags(row)]
    if bad:
        return [
            f"{where}: a list of tags (strings or ids), one for each word, is wanted, but "
            f"{rows_of(bad)} holds {values[bad[0]]!r:.80}"
        ]
    labelled = [i for i, row in enumerate(values) if row is not None]
    bad = [
        i for i in labelled if any(isinstance(tag, str) and not tag.strip() for tag in values[i])
    ]
    if bad:
        return [
            f"{where}: {rows_of(bad)} holds an empty tag, {values[bad[0]]!r:.80}; write null for a "
            'word without a label, or data.missing_label: ""'
        ]
    bad = [i for i in labelled if words[i] is None]
    if bad:
        return [f"{where}: tags but no words in {rows_of(bad)}; a row without tags has null"]
    bad = [i for i in labelled if len(values[i]) != len(words[i])]
    if bad:
        i = bad[0]
        return [
            f"{where}: as many tags as tokens, but {rows_of(bad)} "
            f"({len(values[i])} tags, {len(words[i])} tokens)"
        ]
    return []


def _is_list_of_tags(row: Any) -> bool:
    return isinstance(row, list) and all(tag is None or isinstance(tag, (str, int)) for tag in row)

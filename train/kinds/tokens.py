"""A label for each word of a text: entities by a tag scheme, or labels that stand alone."""

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor

from ...modeling.decoding import (
    decode_entities,
    decode_strict,
    even_scores,
    gold_entities,
    read_scores,
    unit_tags,
    word_tags,
)
from ...modeling.heads import IGNORE
from ...modeling.task_config import TaskConfig
from ...modeling.windows import Span, Window, joined_words, locate_words, split_words, units_of
from ..recipe.data_config import DataConfig
from ..recipe.schema import TaskRecipe
from .base import Answers, BatchLayout, LabelType, SplitRows, TaskKind
from .counting import confusion
from .partial import allowed_id, row_marks, shown_id
from .values import ids_of, soft_cross_entropy, taught

NO_LABEL = (-1, -100)  # of class ids, as `datasets` and torch write it


def tags_in(value: list | None) -> list[str | None] | None:
    """The tags of one row, None for a word without a label; None where the row has none."""
    if value is None:
        return None
    return [None if tag is None or tag in NO_LABEL else str(tag) for tag in value]


def row_words(
    data: DataConfig, text: str | None, batch: dict[str, list]
) -> Iterator[tuple[str, list[Span]]]:
    """The text of each row of a batch, and the character spans of its words as the data has them.

    Args:
        data: of a token task.
        text: column of the text; None where the words are joined by spaces.
        batch: rows, checked.
    """
    texts = batch[text] if text is not None else None
    for number, words in enumerate(batch[str(data.tokens)]):
        if texts is None:
            yield " ".join(words), joined_words(words)
        else:
            yield texts[number], locate_words(texts[number], words or []) or []


def first_tokens_of(words: list[int], counts: list[int]) -> list[tuple[int, int]]:
    """(word, token) of a window from its columns `words` and `word_counts`."""
    return [
        (first + more, token)
        for token, (first, count) in enumerate(zip(words, counts, strict=True))
        for more in range(count)
    ]


class Tokens(TaskKind):
    """Labels of words, read and answered on the units of `modeling/windows.py`."""

    label_type: ClassVar[LabelType] = "tags"
    needed = frozenset({"tokens", "label"})
    pipeline_tag = "token-classification"
    decides = ("calibrate", "abstain")
    auto_class = "AutoModelForTokenClassification"

    def __init__(self, task: TaskConfig | TaskRecipe) -> None:
        super().__init__(task)
        entities = ("entity_f1",) if task.scheme else ()
        self.metrics = (*entities, "token_accuracy")
        self.usual_metrics = self.metrics[:1]

    def stand_in_labels(self) -> list[str] | None:
        """See the base class."""
        return ["O", "B-x", "I-x"] if self.task.scheme else ["x", "y"]

    def encode(self, value: Any, data: DataConfig) -> Any:
        """Tags are encoded by windows, see `encode_windows`."""
        raise NotImplementedError("tags belong to the words of a text; see encode_windows")

    def encode_windows(
        self,
        rows: SplitRows,
        words: list[list[Span]],
        windows: list[list[Window]],
    ) -> list[list[list[int]]]:
        """Tag ids by row, window and token: those of the units that are read there, else IGNORE.

        Args:
            rows: a batch of rows.
            words: by row, the words that the text is cut into.
            windows: by row.
        """
        ids: dict[str | None, int] = {label: i for i, label in enumerate(self.labels)}
        labels = []
        texts = zip(row_words(rows.data, rows.text, rows.raw), rows.labels, strict=True)
        marks = row_marks(rows.data, rows.raw)
        for i, ((text, word_spans), tags) in enumerate(texts):
            if marks is not None:
                ids["O"] = allowed_id(self.task, marks[i], "O")
            units, reads = units_of(words[i], [window.first_tokens for window in windows[i]])
            by_window = [[IGNORE] * len(window.input_ids) for window in windows[i]]
            if tags is not None:
                of_units = unit_tags(
                    text, units, word_spans, tags_in(tags) or [], rows.scheme, self.task.scheme
                )
                for of_tokens, pairs in zip(by_window, reads, strict=True):
                    for unit, token in pairs:
                        of_tokens[token] = ids.get(of_units[unit], IGNORE)
            labels.append(by_window)
        return labels

    def decode(self, label: Any, tokens: list[str]) -> str:
        """`token/LABEL` of the tokens that have one."""
        pairs = zip(tokens, label, strict=True)
        shown = ((token, shown_id(self.labels, self.task, i)) for token, i in pairs if i >= 0)
        return " ".join(f"{token}/{label}" for token, label in shown)

    def collate(self, labels: list, layout: BatchLayout) -> Tensor:
        """(N, T) padded, or (1, tokens) packed."""
        if layout.packed:
            return torch.tensor([[tag for tags in labels for tag in tags]])
        return torch.tensor([tags + [IGNORE] * (layout.width - len(tags)) for tags in labels])

    def teacher_loss(self, values: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (n, L) logits of labelled tokens to the teacher's probabilities.

        A teacher of the first labels only teaches these, where the label is none of the others.
        """
        return soft_cross_entropy(*taught(values, targets, labels)).sum()

    def answers(self, rows: SplitRows, values: Tensor) -> Answers:
        """What the pipeline answers to the texts of a split, against the words of its rows.

        Args:
            rows: the split.
            values: (N, T, L) logits of the windows, in the order of `rows.tokenized`.
        """
        config, tokenized = self.task, rows.tokenized
        signs, strict, apart = None, None, 0
        if isinstance(config, TaskConfig):
            signs, strict, apart = config.signs, config.strict, config.strict_labels
        windows: dict[int, list[int]] = {}
        for i in np.argsort(tokenized["window"][:], kind="stable").tolist():
            windows.setdefault(tokenized["row"][i], []).append(i)
        answers = Answers([], [], [], entities=(set(), set()) if config.scheme else None)
        words, counts = tokenized["words"][:], tokenized["word_counts"][:]
        marks = row_marks(rows.data, rows.raw)
        texts = zip(row_words(rows.data, rows.text, rows.raw), rows.labels, strict=True)
        for row, ((text, word_spans), tags) in enumerate(texts):
            tags = tags_in(tags)
            if tags is None:
                continue
            first_tokens = [first_tokens_of(words[i], counts[i]) for i in windows[row]]
            units, reads = units_of(split_words(text), first_tokens)
            scores = even_scores(len(units), len(self.labels), apart)
            for i, pairs in zip(windows[row], reads, strict=True):
                read_scores(scores, values[i], pairs, apart)
            of_task = (text, units, scores, self.labels, config.scheme, signs)
            entities = decode_strict(*of_task, strict) if strict else decode_entities(*of_task)
            if marks is not None and (marked := marks[row]) is not None:
                entities = [e for e in entities if e["entity_group"] in marked]
            answered = word_tags(entities, word_spans, rows.scheme)
            labelled = [word for word, tag in enumerate(tags) if tag is not None]
            blank = "" if marks is None else "O"
            answers.predictions.append([answered[word] or blank for word in labelled])
            answers.references.append([tags[word] for word in labelled])
            of_units = unit_tags(text, units, word_spans, tags, rows.scheme, config.scheme)
            known = [unit for unit, tag in enumerate(of_units) if tag is not None]
            answers.values.append(scores[known])
            answers.unit_tags += [str(of_units[unit]) for unit in known]
            if answers.entities is not None and rows.scheme is not None:
                true = gold_entities(text, word_spans, tags, rows.scheme)
                unknown = _unknown_spans(word_spans, tags, [(start, end) for _, start, end in true])
                known_spans = [e for e in entities if not _meets((e["start"], e["end"]), unknown)]
                predicted, expected = answers.entities
                predicted.update((row, *_span_of(e)) for e in known_spans)
                expected.update((row, *x) for x in true)
                answers.scored += [
                    (_score_of(e, strict), _span_of(e) in set(true)) for e in known_spans
                ]
            elif answers.entities is None:
                numbered = [{**e, "entity_group": number} for number, e in enumerate(entities)]
                of_words: list = word_tags(numbered, word_spans, None)
                answers.scored += [
                    (_score_of(entities[of_words[word]], strict), answered[word] == tags[word])
                    for word in labelled
                    if of_words[word] is not None
                ]
        return answers

    def report(self, answers: Answers, scores: dict[str, Any]) -> dict[str, Any]:
        """Calibration, entity types, and without a scheme confusions."""
        predictions, references = (
            [tag for row in side for tag in row]
            for side in (answers.predictions, answers.references)
        )
        sections: dict[str, Any] = {"labelled": len(references), "unit": "words"}
        if self.task.scheme is None:
            sections["confusion"] = confusion(self.labels, predictions, references)
        if "per_type" in scores:
            sections["entities"] = scores["per_type"]
        return sections | {"reliability": self.reliability(answers)}

    def truth(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """See the base class; of the units that have a label."""
        values = torch.cat([torch.zeros(0, len(self.labels)), *answers.values])
        return values, ids_of(self.labels, answers.unit_tags)

    def feature(self) -> Any:
        """A list of entities; a label's own words where there is no scheme."""
        score, string, offset = (datasets.Value(kind) for kind in ("float64", "string", "int64"))
        entity = {"entity_group": string, "score": score, "word": string}
        return datasets.List({**entity, "start": offset, "end": offset})


def _span_of(entity: dict[str, Any]) -> tuple[str, int, int]:
    """An answered entity as (kind, start, end)."""
    return entity["entity_group"], entity["start"], entity["end"]


def _score_of(entity: dict[str, Any], strict: Collection[str] | None) -> float:
    """The score of an answered entity; 1 of a type with a threshold of its own."""
    return 1.0 if entity["entity_group"] in (strict or ()) else entity["score"]


def _unknown_spans(words: list[Span], tags: list[str | None], entities: list[Span]) -> list[Span]:
    """Words without a label, and what of an entity goes on from one."""
    return [
        span
        for span, tag in zip(words, tags, strict=True)
        if tag is None or (tag != "O" and not _meets(span, entities))
    ]


def _meets(span: Span, others: list[Span]) -> bool:
    """Has a character in common with one of the others."""
    return any(start < span[1] and span[0] < end for start, end in others)

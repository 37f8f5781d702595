"""Exports of doccano, Prodigy, Label Studio and argilla: a JSON object for each text.

Each reader makes a row with a column for the text and one for each question that was answered; a
text that nobody has answered has null there. Spans stay lists of objects, for `spans.py`; classes
are lists of strings.
"""

from collections.abc import Iterator
from typing import Any

from .base import Format, Row, shown


def as_object(value: Any) -> Row:
    """The value, which has to be an object.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"an object is wanted, but {shown(value)}")
    return value


def read_doccano(value: Any) -> Iterator[Row]:
    """`{"text": ..., "label": [[0, 5, "PER"]]}`; `labels` and `entities` are other names of it."""
    row = dict(as_object(value))
    for other in ("labels", "entities"):
        if "label" not in row and other in row:
            row["label"] = row[other]
    yield row


def read_prodigy(value: Any) -> Iterator[Row]:
    """A task of Prodigy: `spans`, and `label`, its label or the options accepted."""
    row = dict(as_object(value))
    answer = row.get("answer", "accept")
    if answer not in ("accept", "reject", "ignore"):
        raise ValueError(f"answer {shown(answer)}; allowed: accept, reject, ignore")
    if "accept" in row:
        row["label"] = row["accept"]
    row.setdefault("spans", None)
    if answer != "accept":  # what was shown is not so, but what is so is not known
        row["spans"] = row["label"] = None
    elif row["spans"] is None and "label" not in row:
        row["spans"] = []
    row.setdefault("label", None)
    yield row


# ---- Label Studio ----


def read_label_studio(value: Any) -> Iterator[Row]:
    """A task of Label Studio, as JSON or as JSON_MIN: columns are its data and each `from_name`."""
    task = as_object(value)
    if not isinstance(task.get("data"), dict):  # JSON_MIN is flat
        answered = {ANSWERED: True} if {"annotation_id", "annotator"} & task.keys() else {}
        yield {key: _answer(part) for key, part in task.items()} | answered
        return
    row: Row = dict(task["data"])
    finished = [
        part
        for part in task.get("annotations", task.get("completions")) or []
        if not part.get("was_cancelled")
    ]
    truth = [part for part in finished if part.get("ground_truth")]
    chosen = truth if len(truth) == 1 else finished
    answers = [_results(part.get("result") or []) for part in chosen]
    if any(answer != answers[0] for answer in answers[1:]):
        raise ValueError(
            f"task {task.get('id')} has {len(answers)} annotations that differ; mark one as ground "
            "truth, or export one for each task"
        )
    if answers:
        row |= answers[0]
        row[ANSWERED] = True
    yield row


ANSWERED = "answered"  # a column: somebody has annotated the row, if only to say that nothing is


def _results(results: list[Row]) -> Row:
    """Answers of one annotation by question."""
    answers: Row = {}
    for result in results:
        kind, value = result.get("type"), result.get("value") or {}
        name = str(result.get("from_name"))
        if kind == "labels":
            answers.setdefault(name, []).append(value)
        elif kind == "choices":
            answers[name] = [*answers.get(name, []), *value.get("choices", [])]
        elif kind in ("rating", "number"):
            answers[name] = value.get(kind)
        elif kind == "textarea":
            answers[name] = value.get("text")
        elif kind == "taxonomy":
            answers[name] = ["/".join(path) for path in value.get("taxonomy", [])]
    return answers


def _answer(value: Any) -> Any:
    return value["choices"] if isinstance(value, dict) and "choices" in value else value


# ---- argilla ----


def read_argilla(value: Any) -> Iterator[Row]:
    """A record of argilla: columns are its fields and questions.

    Records of version 2 have `fields` and `responses`, or flat `question.responses`; datasets on
    the Hub of version 1 lists of responses, and those before it an `annotation`.
    """
    record = as_object(value)
    if isinstance(record.get("fields"), dict):
        row = {"id": record.get("id"), **record["fields"]}
        responses = record.get("responses")
        pairs = responses.items() if isinstance(responses, dict) else []
        if isinstance(responses, list):  # version 1: those of a user, by question
            submitted = [part for part in responses if part.get("status") != "discarded"]
            names = dict.fromkeys(name for part in submitted for name in part.get("values") or {})
            pairs = [
                (n, [part["values"][n] for part in submitted if n in (part["values"] or {})])
                for n in names
            ]
        yield row | {name: _agreed(name, answers) for name, answers in pairs}
        return
    row = {}
    for key, part in record.items():
        if key.endswith(".responses"):
            states = record.get(f"{key}.status") or [None] * len(part or [])
            answers = [a for a, state in zip(part or [], states, strict=False) if _counts(state)]
            name = key.removesuffix(".responses")
            row[name] = _agreed(name, [{"value": answer} for answer in answers])
        elif isinstance(part, list) and part and all(map(_is_response, part)):
            row[key] = _agreed(key, part)
        elif part == [] and f"{key}-suggestion" in record:
            row[key] = None
        elif key == "annotation":
            row["label"] = part if isinstance(part, list) or part is None else [part]
        elif key == "inputs" and isinstance(part, dict):
            row |= {name: text for name, text in part.items() if name not in record}
        else:
            row.setdefault(key, part)
    yield row


def _is_response(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value and bool({"user_id", "status"} & {*value})


def _counts(state: Any) -> bool:
    return state not in ("discarded", "draft", "pending")


def _agreed(question: str, responses: Any) -> Any:
    """What all submitted responses say; a class in a list."""
    values = [
        response.get("value") if isinstance(response, dict) else response
        for response in responses or []
        if not isinstance(response, dict) or _counts(response.get("status"))
    ]
    values = [value for value in values if value is not None]
    if not values:
        return None
    if any(value != values[0] for value in values[1:]):
        raise ValueError(
            f"question {question!r} has {len(values)} responses that differ; export records with "
            "one response each"
        )
    return [values[0]] if isinstance(values[0], str) else values[0]


DOCCANO = Format(read_value=read_doccano)
PRODIGY = Format(read_value=read_prodigy, tags="spans")
LABEL_STUDIO = Format(read_value=read_label_studio)
ARGILLA = Format(read_value=read_argilla)

"""What the tasks say of a text, a pair or a text with choices, as HTML.

Bars and answers come from one encoder pass: two calls of the pipeline are read, one as `predict`
asks, one for the best labels, and each window that is encoded is given to both.
"""

from typing import Any

from ...modeling.calls import Call
from ...modeling.inputs import TextOrPair
from ...modeling.pipeline_polyhead import PolyheadPipeline
from .markup import bars, entities, escaped, number, numbers, section, table

BEST = 10  # labels that get a bar
WINDOWS_A_PASS = 16
SNIPPET = 48  # characters of a window's beginning and end


def tasks_that_read(pipe: PolyheadPipeline, form: str, *, vectors: bool = False) -> list[str]:
    """Names of the tasks that read texts, pairs or choices; embedding tasks apart."""
    configs = pipe.model.config.tasks
    return [
        name
        for name in pipe.model.task_names
        if configs[name].reads == form
        and (configs[name].head_class.output == "embeddings") == vectors
    ]


def read(pipe: PolyheadPipeline, text: TextOrPair, tasks: list[str]) -> str:
    """What each task answers, and how a long text was read.

    Args:
        pipe: the model.
        text: a text, a pair, or a text with others to choose from.
        tasks: tasks that read it.

    Returns:
        HTML, in which nothing of the text or of a label is a tag.

    Raises:
        ValueError: there is no text, or a task does not read it.
    """
    if not tasks:
        raise ValueError("choose a task")
    if not any(part.strip() for part in _parts(text)):
        raise ValueError("type a text")
    chooses = isinstance(text, tuple) and not isinstance(text[1], str)
    call: Any = pipe.read([text], tasks)
    best: Any = call if chooses else pipe.read([text], tasks, top_k=BEST, threshold=0.0)
    entries = call.entries
    for start in range(0, len(entries), WINDOWS_A_PASS):
        part = slice(start, start + WINDOWS_A_PASS)
        outputs = pipe.encode(entries[part])
        for one, other, values in zip(entries[part], best.entries[part], outputs, strict=True):
            one.take(values)
            if other is not one:
                other.take(values)
    (answers,), (ranked,) = call.answers(), (call if chooses else best).answers()
    configs = pipe.model.config.tasks
    shown = [_answer(name, configs[name], text, answers[name], ranked[name]) for name in tasks]
    return "\n".join([*shown, _windows(call, text, tasks)])


def _parts(text: TextOrPair) -> list[str]:
    if isinstance(text, str):
        return [text]
    return [text[0], *([text[1]] if isinstance(text[1], str) else text[1])]


def _answer(name: str, task: Any, text: TextOrPair, answer: Any, ranked: Any) -> str:
    """One task's answer.

    Args:
        name: of the task.
        task: its config.
        text: what was read.
        answer: what `predict` says.
        ranked: the same for the best labels.
    """
    kind = str(task.problem_type or task.head).replace("_", " ")
    if task.head_class.decodes_spans:
        return section(name, kind, entities(str(text), answer))
    if task.problem_type == "regression":
        return section(name, kind, number(answer["score"]))
    if task.head_class.chooses:
        chosen = {answer["label"]}
        shown = answer if answer["label"] is not None else {**answer, "label": "no answer"}
        return section(name, kind, bars([shown], chosen))
    if task.labels and task.problem_type:
        several = task.problem_type == "multi_label_classification"
        chosen = {entry["label"] for entry in (answer if several else [answer])}
        thresholds = task.label_thresholds if several else task.strict or {}
        if task.abstain is not None:
            thresholds = dict.fromkeys(task.labels, task.abstain) | thresholds
        count = len(task.labels)
        shown = ranked[: max(BEST, len(chosen))]
        kind = "hierarchy" if task.hierarchy else kind
        about = f"{kind}; the {len(shown)} best of {count}" if len(shown) < count else kind
        if task.problem_type == "ordinal":
            shown = _in_order(shown, answer, task.labels)
        elif task.hierarchy:
            shown = _nodes(shown)
        return section(name, about, bars(shown, chosen, thresholds))
    fillings = [ranked] if ranked and isinstance(ranked[0], dict) else ranked
    if task.head in ("masked_lm", "causal_lm"):
        words = [bars(filling, {filling[0]["label"]}) for filling in fillings]
        return section(name, kind, "".join(words) or "<p>The text has no mask to fill.</p>")
    return section(name, kind, numbers(answer))  # of a head of its makers' own


def _in_order(ranked: list[dict], answer: dict, labels: list[str]) -> list[dict]:
    """Classes from the lowest up; the answer is in the middle, and need not be of the best."""
    shown = {entry["label"]: entry for entry in [*ranked, answer]}
    return [shown[label] for label in labels if label in shown]


def _nodes(ranked: list[dict]) -> list[dict]:
    """The nodes above the leaves before them, each once."""
    nodes = {node["label"]: node for leaf in ranked for node in [*leaf["path"], leaf]}
    return list(nodes.values())


def _windows(call: Call, text: TextOrPair, tasks: list[str]) -> str:
    """Where the windows of a long text lie and who reads them; nothing where there is one."""
    if not isinstance(text, str):
        return ""
    entries = call.parts[0].entries
    before = len(str(call.parts[0].texts[0])) - len(text)  # a prompt
    end = entries[-1].window.span[1] - before
    unread = text[end:].strip()
    if len(entries) == 1 and not unread:
        return ""
    rows = []
    for entry in entries:
        first, last = (max(0, place - before) for place in entry.window.span)
        shown = text[first:last]
        if len(shown) > 2 * SNIPPET:
            shown = f"{shown[:SNIPPET]} … {shown[-SNIPPET:]}"
        left, width = (100 * place / len(text) for place in (first, last - first))
        ruler = f'<div class="ruler"><i style="left:{left:.1f}%;width:{width:.1f}%"></i></div>'
        cells = [str(entry.window.number + 1), f"{first:,}-{last:,}"]
        snippet = f'<span class="snippet">{escaped(shown)}</span>'
        cells += [ruler, snippet, escaped(", ".join(entry.tasks))]
        rows.append(cells)
    said = ""
    if unread:
        said = f"<p>The last {len(text) - end:,} characters are read by no task.</p>"
    most = max(entry.length for entry in entries)
    header = ("window", "characters", "where", "text", "read by")
    title = f"{len(entries)} window{'s' * (len(entries) > 1)} of at most {most} tokens"
    return section("How the text was read", title, table(header, rows) + said)

"""An export without a Python stack: what `runner.py` needs beside the graph.

It decides as the pipeline does. What would differ between versions of Unicode, or be a second
copy of a rule, it is told in `export.json`: which characters make words, which tags may follow
each other. The written folder is tried against the pipeline before it gets its name.
"""

import math
import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...modeling.hierarchy import tree_levels
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.pipeline_polyhead import PolyheadPipeline
from ...modeling.tags import follow_table
from ...modeling.task_config import TaskConfig
from ...modeling.windows import WORD, window_length
from ..artifacts import write_text
from ..inference.exported import ExportedModel
from ..inference.files import plain

RUNNERS = ("runner.py", "runner.mjs")
HOW = {  # what the runners make of a head's output
    "embedding": "vector",
    "token_classification": "spans",
    "masked_lm": "masks",
    "causal_lm": "next",
    "multiple_choice": "number",
    "single_label_classification": "ranked",
    "ordinal": "middle",
    "multi_label_classification": "several",
    "regression": "number",
}
LAST = 0x110000  # after the last character
TOLERANCE = 1e-4  # of scores, from fp32 outputs of the graph
TRIALS = [
    "",
    "NUL \0 here",
    "Zürich, 東京 und ก้าวหน้า: £5 (5 %)!",
    "مرحبا بالعالم 👩‍👩‍👧 ok",
    "half a pair \ud83d and e\u0301, \u200dx_y",
    "New York. " * 600,
]
FORMS: dict[str, list] = {
    "text": TRIALS,
    "pair": [(text, other) for text in TRIALS for other in (TRIALS[2], TRIALS[-1])],
    "choices": [(text, [TRIALS[2], TRIALS[3]]) for text in TRIALS],
}


def bundle_faults(
    model: PolyheadModel, tokenizer: PreTrainedTokenizerBase, tasks: list[str]
) -> list[str]:
    """What of a model the runners cannot do."""
    faults = []
    for name in tasks:
        task = model.config.tasks[name]
        if how_of(task) is None:
            faults.append(f"{name}: head {task.head} is your own, and runner.py answers without it")
        if task.strict:
            labels = ", ".join(task.strict)
            faults.append(f"{name}: {labels}: runner.py knows no thresholds of single labels")
        if task.scheme is not None and not _any_length(task.labels or [], task.scheme):
            faults.append(f"{name}: no tag may follow itself under scheme {task.scheme}")
    if not tokenizer.is_fast:
        faults.append("the tokenizer has no tokenizer.json; runner.py reads nothing else")
    elif tokenizer.pad_token_id is None:
        faults.append("the tokenizer has no pad token; set tokenizer.pad_token and save it again")
    if getattr(tokenizer, "split_special_tokens", False):
        faults.append("split_special_tokens is no part of tokenizer.json; take it out")
    return [f"--bundle: {fault}" for fault in faults]


def how_of(task: TaskConfig) -> str | None:
    """What the runners make of the output of a task; None: they do not know."""
    return "branches" if task.hierarchy else HOW.get(task.problem_type or task.head)


def pools_of(task: TaskConfig) -> str:
    """How the runners make one output of those of a text's windows."""
    return "tokens" if task.head_class.output == "embeddings" else task.window_pooling or "mean"


def _any_length(labels: list[str], scheme: str) -> bool:
    """There is a legal sequence of tags for every number of words."""
    table = follow_table(labels, scheme)
    return any(table[-1][i] and row[i] and row[-1] for i, row in enumerate(table[:-1]))


def add_runners(
    model: PolyheadModel, tokenizer: PreTrainedTokenizerBase, about: dict[str, Any], folder: Path
) -> None:
    """Put the runner into a written export, and what it is told into `about`."""
    configs = {name: model.config.tasks[name] for name in about["tasks"]}
    length = window_length(tokenizer, model.usable_length)
    added, added_to_pairs = map(tokenizer.num_special_tokens_to_add, (False, True))
    about["bundle"] = {
        "window": length,
        "room": {"text": length - added, "pair": length - added_to_pairs},
        "truncation_side": tokenizer.truncation_side,
        "pad_id": tokenizer.pad_token_id,
        "mask_id": tokenizer.mask_token_id,
        "special_ids": tokenizer.all_special_ids,
        "type_ids": "token_type_ids" in tokenizer.model_input_names,
        "reads": {name: task.reads for name, task in configs.items()},
        "how": {name: how_of(task) for name, task in configs.items()},
        "windowed": [name for name, task in configs.items() if task.reads_windows],
        "pools": {name: pools_of(task) for name, task in configs.items() if task.pools_windows},
        "levels": {
            name: tree_levels(task.labels or []).tolist()
            for name, task in configs.items()
            if task.hierarchy
        },
        **patterns(),
        "tags": {
            name: ["".join(map(str, row)) for row in follow_table(task.labels, task.scheme)]
            for name, task in configs.items()
            if task.scheme is not None
        },
    }
    here = resources.files("polyhead.train.export")
    for name in RUNNERS:
        write_text(folder / name, here.joinpath(name).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def patterns() -> dict[str, str]:
    """`word`, `letter` and `space` as patterns that Python and JavaScript read the same.

    The letters and spaces that the two know by short names differ; so they are written out.
    """
    written = WORD.pattern
    assert [written.count(part) for part in (r"[^\W_", r"[^\w\s]")] == [1, 1], written
    solid = re.compile(written.partition("]")[0] + "]")
    letters = [chr(c) for c in range(LAST) if chr(c).isalnum()]
    spaces = [chr(c) for c in range(LAST) if chr(c).isspace()]
    letter, space = _ranges(letters), _ranges(spaces)
    loose = _ranges([c for c in letters if not solid.match(c)])
    start = written.index(r"[^\W_")
    end = written.index("]", start)
    word = written[:start] + f"[{loose}" + written[end:]
    return {
        "word": word.replace(r"[^\w\s]", f"[^_{letter}{space}]"),
        "letter": f"[{letter}]",
        "space": f"[{space}]",
    }


def _ranges(characters: list[str]) -> str:
    """Sorted characters as a class holds them, `0-9A-Z`; none of them may be a sign."""
    parts: list[list[str]] = []
    for character in characters:
        if parts and ord(parts[-1][1]) + 1 == ord(character):
            parts[-1][1] = character
        else:
            parts.append([character, character])
    return "".join(a if a == b else f"{a}-{b}" for a, b in parts)


# ---- the trial ----


def check_bundle(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare what `runner.py` answers with the pipeline on the same graph.

    Raises:
        ValueError: they differ.
    """
    from .runner import Runner  # needs onnxruntime

    run = Runner(folder)
    model: Any = ExportedModel(folder)
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device=-1)
    pipe.windows.told.add("cut")  # the trial's own texts
    for name, task in model.config.tasks.items():
        texts = FORMS[task.reads]
        for top_k in (1, None):
            expected: Any = plain(pipe(texts, [name], top_k=top_k))
            for text, one, other in zip(
                texts, expected, run(texts, [name], top_k=top_k), strict=True
            ):
                if not same_answers(one, other):
                    raise ValueError(
                        f"{name}: runner.py answers {other!r:.80} to {text!r:.40}, the pipeline "
                        f"{one!r:.80}"
                    )


def same_answers(one: Any, other: Any) -> bool:
    """Equal, numbers within the tolerance; equally probable labels may change places."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_answers(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        if one and isinstance(one[0], float):
            return len(one) == len(other) and np.allclose(one, other, rtol=0, atol=TOLERANCE)
        return len(one) == len(other) and all(map(same_answers, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(one) is type(other) and one == other

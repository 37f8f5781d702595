"""What the page offers to try: the examples of the recipe, which travel in `training.json`."""

from pathlib import Path
from typing import Any

from ...modeling.inputs import TextOrPair, form_of, read_text
from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..hub.card import read_runs

TEXTS = [
    "Anna Smith moves from Berlin to New York on Monday and is glad about it.",
    "I am not happy: the parcel I ordered last week still has not arrived.",
]
PAIRS = [("The parcel has not arrived.", "My order is late.")]
CHOICES = [("The parcel is late. I", ("call the shop", "sing a song"))]
USUAL: dict[str, list[Any]] = {"text": TEXTS, "pair": PAIRS, "choices": CHOICES}
OURS = "of ours, because the model names none"


def examples_of(pipe: PolyheadPipeline, folder: str | Path) -> dict[str, list[TextOrPair]]:
    """Examples by task, of those that the last training of each names; without any no entry."""
    configs, examples = pipe.model.config.tasks, {}
    for run in read_runs(Path(folder)):
        tasks = run["recipe"].get("tasks")
        for name in pipe.model.task_names if isinstance(tasks, dict) else []:
            task = tasks.get(name)
            listed = task.get("examples") if isinstance(task, dict) else None
            read = [_read(one) for one in listed] if isinstance(listed, list) else []
            fitting = [
                one for one in read if one is not None and form_of(one) == configs[name].reads
            ]
            if fitting:
                examples[name] = fitting
    return examples


def by_tasks(examples: dict[str, list[TextOrPair]]) -> dict[str, list[TextOrPair]]:
    """Tasks with the same examples under one heading, their names."""
    groups: list[tuple[list[str], list[TextOrPair]]] = []
    for name, texts in examples.items():
        names = next((names for names, same in groups if same == texts), None)
        if names is None:
            groups.append(([name], texts))
        else:
            names.append(name)
    return {", ".join(names): texts for names, texts in groups}


def usual_examples(pipe: PolyheadPipeline, form: str) -> list[TextOrPair]:
    """Ours, for models without: of texts one with a mask too, where a task fills it."""
    configs, mask = pipe.model.config.tasks, pipe.tokenizer.mask_token
    fills = any(task.head == "masked_lm" for task in configs.values()) and mask
    return [
        *USUAL[form],
        *([f"The parcel has not {mask} yet."] if fills and form == "text" else []),
    ]


def _read(value: Any) -> TextOrPair | None:
    """An example as JSON has it; None for what is none."""
    try:
        return read_text(tuple(value) if isinstance(value, list) else value)
    except ValueError:
        return None

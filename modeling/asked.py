# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a call of the pipeline may ask for: its options, and the tasks that read what is given."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from .inputs import FORMS, TextOrPair, form_of
from .router import AUTO, is_auto
from .rows import check_tasks

MIXED = "texts and pairs of texts are mixed; give them in separate calls"


def check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for an option of a call that is not in its range."""
    if options["batch_tokens"] is not None and options["batch_size"] is not None:
        raise ValueError("give batch_tokens or batch_size, not both")
    for name in ("batch_tokens", "batch_size", "top_k"):
        value = options[name]
        if value is not None and (not isinstance(value, Integral) or value is True or value < 1):
            raise ValueError(f"{name} is {value!r}; it must be at least 1, or None")
    threshold = options["threshold"]
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if threshold is not None and not (number and 0 <= float(threshold) <= 1):
        raise ValueError(f"threshold is {threshold!r}; it must lie in [0, 1], or be None")
    if not isinstance(options["document"], bool):
        raise ValueError(f"document is {options['document']!r}; it must be True or False")


def form_of_all(texts: Iterable[TextOrPair], *others: str) -> str:
    """The one form of some texts, and of others that were read before.

    Raises:
        ValueError: they have several.
    """
    forms = {*map(form_of, texts), *others}
    if len(forms) > 1:
        raise ValueError(MIXED)
    (form,) = forms
    return form


def chosen_tasks(reads: Mapping[str, str], form: str, tasks: Sequence[str] | None) -> list[str]:
    """The tasks that a call runs.

    Args:
        reads: by task, the form that it reads.
        form: that of the texts.
        tasks: those asked for, each known; None for all that read the form.

    Raises:
        ValueError: a task does not read the form, or none does.
    """
    if tasks is None:
        chosen = [name for name, reading in reads.items() if reading == form]
        if not chosen:
            others = " or ".join(dict.fromkeys(FORMS[reading] for reading in reads.values()))
            raise ValueError(f"every task of this model reads {others}")
        return chosen
    for name in tasks:
        if reads[name] != form:
            raise ValueError(f"task {name!r} reads {FORMS[reads[name]]}")
    return list(tasks)


def known_tasks(task_names: list[str], tasks: Sequence[str]) -> Sequence[str]:
    """Names of tasks that a caller gives, each once; `AUTO` as it is.

    Args:
        task_names: the model's.
        tasks: what is given.

    Raises:
        ValueError: there are none, or one is unknown.
    """
    if is_auto(tasks):
        return AUTO
    if isinstance(tasks, str):
        raise ValueError(f"tasks is the string {tasks!r}; give a list: tasks=[{tasks!r}]")
    no_list = isinstance(tasks, (bytes, Mapping)) or getattr(tasks, "ndim", 1) != 1
    if no_list or not isinstance(tasks, Iterable):
        raise ValueError(f"tasks is {tasks!r}; give a list of names, or None for all")
    # of numpy's and of other subclasses the plain string
    names = [str.__str__(name) if isinstance(name, str) else name for name in tasks]
    if not names:
        raise ValueError("tasks is empty; None asks for all")
    check_tasks(task_names, names)
    return list(dict.fromkeys(names))


def routed_tasks(config: Any, form: str) -> list[str]:
    """The tasks that `tasks="auto"` may answer: those that the router knows, in the model's order.

    Args:
        config: the model's.
        form: that of the texts.

    Raises:
        ValueError: the model has no router, or the texts are pairs.
    """
    names = ", ".join(config.tasks)
    if config.router is None:
        raise ValueError(
            f"tasks is {AUTO!r}, but this model has no router, which finds the tasks of a text; "
            f"train one with router: true in the recipe, or name tasks: {names}"
        )
    if form != "text":
        raise ValueError(f"tasks is {AUTO!r}, which finds the tasks of {FORMS['text']}; name tasks")
    labels = config.tasks[config.router].labels
    return [n for n in config.task_names if n in labels and config.tasks[n].reads == "text"]

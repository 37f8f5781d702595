# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""One call of the pipeline: its windows, which any encoder pass may take, and its answers.

A call is cut into windows before the encoder runs, and each window says which tasks read it. So a
pass may hold windows of several calls, of other tasks and adapters: a server fills its passes so.
The answers are the same whatever a window was encoded with.

Shapes: `L` labels, `D` embedding width, `U` units of words.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .decoding import even_scores, read_scores
from .inputs import TextOrPair
from .router import Route, route_of
from .windows import Reads, Span, Window

NOT_READ = -1  # no token's id


@dataclass(eq=False)
class Entry:
    """A window that waits for an encoder pass.

    Args:
        window: its tokens.
        part: the texts that it is of.
        row: number of its text among them.
        reads: (unit, token) of the units of words that are read in it.
    """

    window: Window
    part: "Part"
    row: int
    reads: Reads

    @property
    def length(self) -> int:
        """Number of its tokens."""
        return len(self.window.input_ids)

    @property
    def tasks(self) -> list[str]:
        """The tasks that read it; none after the first where only masks count and it has none."""
        names, configs = self.part.tasks_of(self.row), self.part.configs
        if self.window.first:
            return names
        names = [name for name in names if configs[name].reads_windows]
        if self.window.masks:
            return names
        return [n for n in names if configs[n].pools_windows or n in self.part.scores]

    def take(self, values: dict[str, Tensor]) -> None:
        """Read what the tasks gave for the window: (L,) or (D,), or (its tokens, L)."""
        self.part.take(self, values)


@dataclass(eq=False)
class Part:
    """Texts of a call that the same tasks read, under the same prompt.

    Args:
        texts: texts or pairs, the prompt before them.
        tasks: names of the tasks.
        configs: the model's tasks.
        asked: `top_k` and `threshold` of the call, and the `tokenizer`.
        units: character spans of the words of each unit, by text.
        entries: the windows, those of a text consecutive.
        router: that one of the tasks which says, from a text's first window, which others read it.
    """

    texts: Sequence[TextOrPair]
    tasks: list[str]
    configs: dict[str, Any]
    asked: dict[str, Any]
    units: list[list[list[Span]]]
    entries: list[Entry] = field(default_factory=list)
    router: str | None = None

    def __post_init__(self) -> None:
        self.routes: list[Route | None] = [None for _ in self.texts]
        self.results: list[dict[str, Any]] = [{} for _ in self.texts]
        # (U, L) log-probabilities of each text, filled window by window
        self.scores = {
            name: [even_scores(len(u), task.num_labels, task.strict_labels) for u in self.units]
            for name, task in ((name, self.configs[name]) for name in self.tasks)
            if self.configs[name].head_class.decodes_spans
        }
        # by task and text: what was read of each window, of tasks that read several
        self.by_window: dict[str, list[dict[int, Any]]] = {
            name: [{} for _ in self.texts]
            for name in self.tasks
            if name not in self.scores and self.configs[name].reads_windows
        }

    def tasks_of(self, row: int) -> list[str]:
        """The tasks that read a text; with a router, once it has answered, those that it names."""
        route = self.routes[row]
        return self.tasks if route is None else [n for n in self.tasks if n in route["tasks"]]

    def take(self, entry: Entry, values: dict[str, Tensor]) -> None:
        """Read the values of one window; windows may come in any order, from any thread.

        Where there is a router, the first window of a text comes first.
        """
        window = entry.window
        if self.router is not None and window.first:
            router, threshold = self.configs[self.router], self.asked["threshold"]
            self.routes[entry.row] = route_of(router, self.configs, values[self.router], threshold)
        for name in entry.tasks:
            task = self.configs[name]
            if name in self.scores:
                scores = self.scores[name][entry.row]
                read_scores(scores, values[name], entry.reads, task.strict_labels)
            elif name not in self.by_window:
                self.results[entry.row][name] = self._answer(name, values[name], window.input_ids)
            elif task.pools_windows:
                self.by_window[name][entry.row][window.number] = entry, values[name]
            else:  # tokens that are answered in this window
                ids = [NOT_READ] * entry.length
                for token in window.masks:
                    ids[token] = window.input_ids[token]
                answers = self._answer(name, values[name], ids)
                self.by_window[name][entry.row][window.number] = answers

    def _answer(self, name: str, values: Tensor, ids: list[int]) -> Any:
        task = self.configs[name]
        return task.head_class.answer(task, values, ids, **self.asked)

    def _of_windows(self, name: str, read: dict[int, Any]) -> Any:
        """The answer to a text of which several windows may have been read."""
        task, windows = self.configs[name], [read[number] for number in sorted(read)]
        if not task.pools_windows:
            return [answer for answers in windows for answer in answers]
        entry, values = windows[0]
        if len(windows) > 1:
            lengths = torch.tensor([entry.length for entry, _ in windows])
            stacked = torch.stack([values for _, values in windows])
            values = task.head_class.pool_windows(task, stacked, lengths)
        return self._answer(name, values, entry.window.input_ids)

    def answers(self) -> list[dict[str, Any]]:
        """One dict per text, keyed by task, once all windows are read."""
        for name, rows in self.scores.items():
            task = self.configs[name]
            for row, text in enumerate(self.texts):
                if name not in self.tasks_of(row):
                    continue
                self.results[row][name] = task.head_class.answer_spans(
                    task, str(text), self.units[row], rows[row]
                )
        for name, texts in self.by_window.items():
            for row, read in enumerate(texts):
                if name not in self.tasks_of(row):
                    continue
                self.results[row][name] = self._of_windows(name, read)
        return self.results


@dataclass(eq=False)
class Call:
    """All texts of a call.

    Args:
        texts: as `read_inputs` gives them.
        tasks: names of the tasks, in the order of the answers.
        parts: the same texts for each prompt; a text with choices as one pair for each of them.
        configs: the model's tasks.
        chooses: the texts come with others to choose from.
    """

    texts: list[TextOrPair]
    tasks: list[str]
    parts: list[Part]
    configs: dict[str, Any]
    chooses: bool

    def __post_init__(self) -> None:
        self.begun = False

    @property
    def entries(self) -> list[Entry]:
        """The windows of all texts."""
        return [entry for part in self.parts for entry in part.entries]

    def more(self) -> list[Entry]:
        """The windows to encode next; none when the answers are due."""
        begun, self.begun = self.begun, True
        return [] if begun else self.entries

    def answers(self) -> list[dict[str, Any]]:
        """One dict per text, keyed by task, once all windows are read."""
        results: list[dict[str, Any]] = [{} for _ in self.texts]
        for part in self.parts:
            answers = part.answers()
            answers = self._choices(answers) if self.chooses else answers
            results = [{**one, **more} for one, more in zip(results, answers, strict=True)]
        return [{name: result[name] for name in self.tasks} for result in results]

    def _choices(self, scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers to texts that come with others to choose from, of those to each pair."""
        pairs, results = iter(scored), []
        for _, others in self.texts:
            of_text = list(islice(pairs, len(others)))
            results.append({})
            for name in self.tasks:
                task = self.configs[name]
                answers = [answer[name] for answer in of_text]
                results[-1][name] = task.head_class.answer_choice(task, answers, others)
        return results


@dataclass(eq=False)
class AutoCall:
    """A call whose tasks the router finds, text by text.

    First every text's first window is encoded, for the router and for the tasks that read the same
    pass. What else the tasks need that it names comes next: further windows of long texts, and
    passes through other adapters or with a prompt before the text.

    Args:
        part: the texts, as the router reads them.
        names: the tasks that the router knows, in the order of the answers.
        read: texts and tasks to a call of these tasks.
    """

    part: Part
    names: list[str]
    read: Callable[[list[TextOrPair], list[str]], Call]

    def __post_init__(self) -> None:
        self.stages = 0
        self.others: list[tuple[list[int], Call]] = []  # rows, and the call for them

    @property
    def tasks(self) -> list[str]:
        """The router, and the tasks that it has named for some text."""
        named = {name for route in self.part.routes if route for name in route["tasks"]}
        return [str(self.part.router), *(name for name in self.names if name in named)]

    @property
    def entries(self) -> list[Entry]:
        """The windows that have been encoded, or are."""
        first = [entry for entry in self.part.entries if entry.window.first or entry.tasks]
        return first + [entry for _, call in self.others for entry in call.entries]

    def more(self) -> list[Entry]:
        """The windows to encode next; none when the answers are due."""
        self.stages += 1
        if self.stages == 1:
            return [entry for entry in self.part.entries if entry.window.first]
        if self.stages > 2:
            return []
        rows: dict[tuple[str, ...], list[int]] = {}
        for row, route in enumerate(self.part.routes):
            names = route["tasks"] if route else []
            apart = [n for n in self.names if n in names and n not in self.part.tasks]
            if apart:
                rows.setdefault(tuple(apart), []).append(row)
        texts = self.part.texts
        self.others = [
            (numbers, self.read([texts[row] for row in numbers], list(names)))
            for names, numbers in rows.items()
        ]
        windows = [entry for entry in self.part.entries if not entry.window.first and entry.tasks]
        return windows + [entry for _, call in self.others for entry in call.more()]

    def answers(self) -> list[dict[str, Any]]:
        """One dict per text: what the router says, then the answers of the tasks that it names."""
        results = self.part.answers()
        for rows, call in self.others:
            for row, answer in zip(rows, call.answers(), strict=True):
                results[row].update(answer)
        return [
            {str(self.part.router): route} | {n: result[n] for n in self.names if n in result}
            for result, route in zip(results, self.part.routes, strict=True)
        ]

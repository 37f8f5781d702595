# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""One call of the pipeline: its windows, which any encoder pass may take, and its answers.

A call is cut into windows before the encoder runs, and each window says which tasks read it. So a
pass may hold windows of several calls, of other tasks and adapters: a server fills its passes so.
The answers are the same whatever a window was encoded with.

Shapes: `L` labels, `D` embedding width, `U` units of words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from .decoding import even_scores, read_scores
from .inputs import TextOrPair
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
        names, configs = self.part.tasks, self.part.configs
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
    """

    texts: Sequence[TextOrPair]
    tasks: list[str]
    configs: dict[str, Any]
    asked: dict[str, Any]
    units: list[list[list[Span]]]
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
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

    def take(self, entry: Entry, values: dict[str, Tensor]) -> None:
        """Read the values of one window; windows may come in any order, from any thread."""
        window = entry.window
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
                self.results[row][name] = task.head_class.answer_spans(
                    task, str(text), self.units[row], rows[row]
                )
        for name, texts in self.by_window.items():
            for row, read in enumerate(texts):
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

    @property
    def entries(self) -> list[Entry]:
        """The windows of all texts."""
        return [entry for part in self.parts for entry in part.entries]

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

"""Tables in, tables out: a callable for `ray.data.Dataset.map_batches`, and for any other such map.

Ray Data makes one in each worker, so a model is loaded once for many blocks. Nothing of Ray is
imported: a table of Arrow comes in, the same rows with a column of answers for each task go out.
"""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.table import InMemoryTable

from ...modeling.pipeline_polyhead import PolyheadPipeline
from ...modeling.router import AUTO, is_auto
from ..errors import UserError
from ..recipe.code import allow_code as run_code
from .files import answer_columns, answer_features, table_faults
from .pipeline import load_pipeline

ARROW = 'rows come as {kind}; give map_batches batch_format="pyarrow"'


class PolyheadPredictor:
    """Answers of a model's tasks for the rows of tables.

    Args:
        model: folder or Hub id of a saved or exported Polyhead, where each worker finds it.
        tasks: names; None for every task that reads what is given; "auto" for those that the
            model's router finds in each text, the columns of others are null then.
        text: column with the texts.
        text_pair: column with the second texts, for pair tasks; with lists of them, for tasks that
            choose.
        compute: how the encoder computes; see `PolyheadPipeline`.
        allow_code: run the files with heads of makers' own that the model names.
        options: further arguments of the pipeline's call: `batch_tokens`, `document`, ...

    Raises:
        UserError: there is no such model or task.
    """

    def __init__(
        self,
        model: str,
        *,
        tasks: Sequence[str] | None = None,
        text: str = "text",
        text_pair: str | None = None,
        compute: str = "auto",
        allow_code: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        # oneDNN keeps what it compiled for each shape, and packed batches have ever new shapes
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
        if allow_code:
            run_code(model)
        self.pipe = load_pipeline(model, compute)
        self.tasks = tasks_reading(self.pipe, tasks, pairs=text_pair is not None)
        self.auto = is_auto(tasks)
        self.text, self.text_pair = text, text_pair
        self.options = dict(options or {})

    def __call__(self, rows: pa.Table) -> pa.Table:
        """The rows with a column for each task, as `polyhead predict --output` writes them.

        Raises:
            UserError: a column is missing, has the name of a task, or lacks a text.
        """
        if not isinstance(rows, pa.Table):
            raise UserError("PolyheadPredictor", [ARROW.format(kind=type(rows).__name__)])
        schema = answer_features(self.pipe, self.tasks, auto=self.auto).arrow_schema
        given = Dataset(InMemoryTable(rows))
        reads = self.pipe.model.config.tasks[self.tasks[0]].reads
        faults = table_faults(
            given, self.tasks, self.text, self.text_pair, choices=reads == "choices"
        )
        if faults:
            raise UserError("PolyheadPredictor", faults)
        texts: list[Any] = rows.column(self.text).to_pylist()
        if self.text_pair is not None:
            texts = list(zip(texts, rows.column(self.text_pair).to_pylist(), strict=True))
        answers: Any = self.pipe(texts, AUTO if self.auto else self.tasks, **self.options)
        for field, column in zip(schema, answer_columns(answers, schema), strict=True):
            rows = rows.append_column(field, column)
        return rows


def tasks_reading(pipe: PolyheadPipeline, tasks: Sequence[str] | None, *, pairs: bool) -> list[str]:
    """The tasks of a model that read texts, or pairs of texts or texts with choices.

    Args:
        pipe: the model and its tokenizer.
        tasks: names; None for every task that does; "auto" for the router and all that it knows.
        pairs: rows have second texts.

    Raises:
        UserError: there are none, or one of `tasks` is unknown or reads something else.
    """
    faults = []
    examples: list[Any] = [("", ""), ("", ("",))] if pairs else [""]
    for example in examples:
        try:
            return pipe.choose_tasks([example], tasks)
        except ValueError as error:
            faults.append(str(error))
    raise UserError("predict", faults[:1])

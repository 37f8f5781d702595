# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Text in, predictions out: one encoder pass per text for all chosen tasks.

Texts are sorted by length and, on CPUs, packed, so that a batch holds no padding (little, where the
encoder cannot read packed batches); results come back in the caller's order. Texts longer than the
encoder takes are read in overlapping windows by token tasks, and by others whose `long_texts` says
so; the rest read the first window.

One pipeline may be called from any number of threads: a call changes neither the model nor the
tokenizer. A fast tokenizer holds how it cuts texts, and each call with other lengths would change
that under the calls of other threads; so the pipeline has copies of its own, one for each way.
"""

import copy
import logging
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Pipeline, PreTrainedTokenizerBase

from .attention import has_kernel
from .calls import Call, Entry, Part
from .checks import check_tokenizer
from .compute import Mode, check_mode
from .first_use import FIRST_USE
from .inputs import FORMS, TextOrPair, form_of, read_inputs, read_items, tokenizable
from .packing import cumulative
from .rows import check_tasks
from .windows import (
    Reads,
    Span,
    Window,
    cut_note,
    encode_pairs,
    encode_windows,
    split_words,
    units_of,
    window_length,
)

logger = logging.getLogger(__name__)
CALL_OPTIONS = ("tasks", "top_k", "threshold", "batch_tokens", "batch_size", "document")
CALL_IT = "this pipeline has no single steps; call it: pipe(texts)"
NOT_OURS = ("batch_size", "num_workers", "binary_output")  # HF's constructor would take them
MIXED = "texts and pairs of texts are mixed; give them in separate calls"
WAYS = {  # to cut: single texts in windows, pairs at their end, pairs not at all
    "windows": lambda tokenizer, limit: encode_windows(tokenizer, ["a"], [[]], limit),
    "cut": lambda tokenizer, limit: tokenizer(["a"], ["a"], truncation=True, max_length=limit),
    "whole": lambda tokenizer, limit: encode_pairs(tokenizer, [("a", "a")], limit),
}
STRETCH = 1024  # texts of a generator that are sorted by length together
BATCH_TOKENS = {"cpu": 1024}  # of one encoder pass, by kind of device
MORE_TOKENS = 32_768  # of other kinds


class PolyheadPipeline(Pipeline):
    """`pipeline(model=folder, trust_remote_code=True)`, or `PolyheadPipeline(model=, tokenizer=)`.

    Args:
        compute: how the encoder computes: `auto` (default), by what is fastest on this machine for
            the same numbers, measured here once a process; `exact`, as torch does; `bf16`. What
            was chosen, and why: `pipe.model.compute`. It is the model's: pipelines on one model
            share it.

    Args (of a call):
        texts: one text, or a list, a column, a series, an array or another ordered iterable of
            texts; (text, text) tuples, or dicts of `text` and `text_pair`, for pair tasks; (text,
            [text, text]), or dicts of these, for tasks that choose. A generator is read as its
            answers are asked for.
        tasks: names of the tasks; None for every task that reads what is given (texts, pairs or
            choices).
        top_k: how many labels of a single-label task, or fillings of a mask, to give; None for all,
            and for all labels of a multi-label task where no threshold is given.
        threshold: probability from which a multi-label task sets a label; None for the task's own.
        batch_tokens: tokens in one encoder pass, padding counted; default 1,024 on CPUs, where
            larger passes leave the cache, 32,768 elsewhere. A longer text goes alone.
        batch_size: windows in one encoder pass, instead of a number of tokens.
        document: the texts are documents to be found, not queries: embedding tasks with two prompts
            put the second before them.

    Returns:
        one dict per text (for a generator, a generator of them), keyed by task: classification
        `{"label", "score"}` (a list with another `top_k` than 1, or multi-label), regression
        `{"score"}`, token classification a list of `{"entity_group", "score", "word", "start",
        "end"}`, embedding a float32 numpy vector, masked LM a list over the masks of `{"label",
        "score"}`, a task that chooses `{"label", "choice", "score"}`: the text, its number from 0
        and its probability among the choices.

    Raises:
        ValueError: an option is unknown or not in its range, a task is unknown or does not read
            what is given, or a text is not a string.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    tokenizer: PreTrainedTokenizerBase
    model: Any

    def __init__(self, *args: Any, compute: Mode = "auto", **kwargs: Any) -> None:
        check_mode(compute)
        _refuse({name for name in NOT_OURS if name in kwargs})
        _check_model(args[0] if args else kwargs.get("model"))
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
        super().__init__(*args, **kwargs)
        if dtype not in (None, "auto") and str(dtype).rpartition(".")[2] != self._dtype:
            raise ValueError(
                f"dtype is {dtype}, the model's is {self._dtype}; load it in that dtype"
            )
        check_tokenizer(self.tokenizer, getattr(self.model.config, "vocab_size", None))
        self.model.eval()
        self.model.set_compute(compute)
        self._tokenizers: dict[tuple[Any, int, str], PreTrainedTokenizerBase] = {}
        self._told: set[str] = set()  # what is said once

    @property
    def _dtype(self) -> str:
        return str(self.model.dtype).rpartition(".")[2]

    def __call__(
        self,
        texts: TextOrPair | Iterable[TextOrPair],
        tasks: Sequence[str] | None = None,
        *,
        top_k: int | None = 1,
        threshold: float | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        document: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        """Predict; see the class."""
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "document": document}
        options |= {"batch_tokens": batch_tokens, "batch_size": batch_size}
        _check_options(options)
        tasks = None if tasks is None else self._known_tasks(tasks)
        if isinstance(texts, Iterator):
            return self._stream(texts, tasks, options)
        inputs, single = read_inputs(texts)
        if not inputs:
            return []
        call = self._read(inputs, self.choose_tasks(inputs, tasks), options)
        model = self._without_dropout()
        entries = sorted(call.entries, key=lambda entry: -entry.length)
        sizes = {name: options[name] for name in ("batch_tokens", "batch_size")}
        for cut in self._batches([entry.length for entry in entries], **sizes):
            for entry, values in zip(entries[cut], self._encode(model, entries[cut]), strict=True):
                entry.take(values)
        results = call.answers()
        return results[0] if single else results

    def similarity(
        self,
        texts: Iterable[str],
        others: Iterable[str] | None = None,
        *,
        task: str | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Cosines of texts: sentence-transformers' `similarity` of what its `encode` gives.

        Args:
            texts: N, at least one.
            others: M, at least one; None for `texts` themselves. Of a task with two prompts they
                get the second, as documents do.
            task: an embedding task; may be left out where there is one only.
            batch_tokens: see the class.
            batch_size: see the class.

        Returns:
            (N, M) float32.

        Raises:
            ValueError: as of a call; or there is no text.
        """
        name = self.model.config.embedding_task(task)
        sizes: Any = {"batch_tokens": batch_tokens, "batch_size": batch_size}

        def vectors(part: Iterable[str], *, document: bool) -> Tensor:
            part = [part] if isinstance(part, str) else list(part)
            if not part:
                raise ValueError("there is no text to compare; give one or more")
            answers: Any = self(part, [name], document=document, **sizes)
            return normalize(torch.stack([torch.from_numpy(answer[name]) for answer in answers]))

        one = vectors(texts, document=False)
        return one @ (one if others is None else vectors(others, document=True)).T

    # ---- a call in steps, for servers ----

    def read(
        self,
        texts: Iterable[TextOrPair],
        tasks: Sequence[str] | None = None,
        *,
        top_k: int | None = 1,
        threshold: float | None = None,
        document: bool = False,
    ) -> Call:
        """The windows of a call, for `encode`; its `answers()` are due when all are encoded.

        Windows of several calls, of any tasks and adapters, may go into one pass. Arguments and
        errors are those of a call; `texts` is a list, and not empty.
        """
        options = {"top_k": top_k, "threshold": threshold, "document": document}
        _check_options({**options, "batch_tokens": None, "batch_size": None})
        inputs, _ = read_inputs(texts)
        if not inputs:
            raise ValueError("texts is []; give one or more")
        return self._read(inputs, self.choose_tasks(inputs, tasks), options)

    def encode(self, entries: list[Entry]) -> list[dict[str, Tensor]]:
        """One encoder pass: what the tasks of each window give for it; `entry.take` reads it."""
        return self._encode(self._without_dropout(), entries)

    def _read(self, texts: list[TextOrPair], tasks: list[str], options: dict[str, Any]) -> Call:
        configs = self.model.config.tasks
        asked = {name: options[name] for name in ("top_k", "threshold")}
        asked["tokenizer"] = self.tokenizer
        chooses = form_of(texts[0]) == "choices"
        pairs: list[TextOrPair] = (
            [(one, other) for one, others in texts for other in others] if (chooses) else texts
        )
        parts = []
        for prompt, names in self._groups(tasks, int(options["document"]), form_of(texts[0])):
            read = [prompt + text for text in pairs] if prompt else pairs  # pyright: ignore
            units, windows = self._windows(read, names)
            part = Part(read, names, configs, asked, units)
            entries = [Entry(window, part, row, reads) for row, window, reads in windows]
            part.entries = [entry for entry in entries if entry.tasks]
            parts.append(part)
        return Call(texts, tasks, parts, configs, chooses)

    def _groups(self, tasks: list[str], part: int, form: str) -> list[tuple[str, list[str]]]:
        """Prompts, and the tasks whose texts they stand before; each group is read on its own.

        Pairs are cut otherwise for tasks that read their windows.
        """
        groups: dict[tuple[str, bool], list[str]] = {}
        for name in tasks:
            config = self.model.config.tasks[name]
            prompt = "" if form == "choices" else config.prompt(part)
            key = (prompt, form == "pair" and config.reads_windows)
            groups.setdefault(key, []).append(name)
        return [(prompt, names) for (prompt, _), names in groups.items()]

    def _stream(
        self, texts: Iterator[TextOrPair], tasks: Sequence[str] | None, options: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Answers to texts that come one by one, sorted by length within a stretch."""
        first, forms = 0, set()
        while stretch := read_items(islice(texts, STRETCH), first):
            first += len(stretch)
            forms |= set(map(form_of, stretch))
            if len(forms) > 1:
                raise ValueError(MIXED)
            yield from self(stretch, tasks, **options)  # pyright: ignore[reportReturnType]

    def choose_tasks(
        self, texts: list[TextOrPair], tasks: Sequence[str] | None = None
    ) -> list[str]:
        """The tasks that a call with these arguments runs.

        Raises:
            ValueError: a task is unknown, or does not read what is given (texts or pairs).
        """
        forms = set(map(form_of, texts))
        if len(forms) > 1:
            raise ValueError(MIXED)
        (form,) = forms
        reads = {name: self.model.config.tasks[name].reads for name in self.model.task_names}
        if tasks is None:
            chosen = [name for name, reading in reads.items() if reading == form]
            if not chosen:
                others = " or ".join(dict.fromkeys(FORMS[reading] for reading in reads.values()))
                raise ValueError(f"every task of this model reads {others}")
            return chosen
        tasks = self._known_tasks(tasks)
        for name in tasks:
            if reads[name] != form:
                raise ValueError(f"task {name!r} reads {FORMS[reads[name]]}")
        return tasks

    def _known_tasks(self, tasks: Sequence[str]) -> list[str]:
        """Names of tasks, each once.

        Raises:
            ValueError: there are none, or one is unknown.
        """
        if isinstance(tasks, str):
            raise ValueError(f"tasks is the string {tasks!r}; give a list: tasks=[{tasks!r}]")
        no_list = isinstance(tasks, (bytes, Mapping)) or getattr(tasks, "ndim", 1) != 1
        if no_list or not isinstance(tasks, Iterable):
            raise ValueError(f"tasks is {tasks!r}; give a list of names, or None for all")
        # of numpy's and of other subclasses the plain string
        names = [str.__str__(name) if isinstance(name, str) else name for name in tasks]
        if not names:
            raise ValueError("tasks is empty; None asks for all")
        check_tasks(self.model.task_names, names)
        return list(dict.fromkeys(names))

    def _batches(
        self, lengths: list[int], batch_tokens: int | None, batch_size: int | None
    ) -> Iterator[slice]:
        """Cuts of windows, of falling `lengths`, into encoder passes."""
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(self.model.device.type, MORE_TOKENS)
        start = total = 0
        for position, length in enumerate(lengths):
            count = position - start
            cost = total + length if self.packs else (count + 1) * lengths[start]
            if count and (count == batch_size if batch_size else cost > batch_tokens):
                yield slice(start, position)
                start, total = position, 0
            total += length
        yield slice(start, len(lengths))

    @property
    def packs(self) -> bool:
        """Passes hold no padding: their cost is their tokens, not windows times the longest."""
        model = self.model
        dtype = torch.bfloat16 if model.compute.runs_bf16 else model.dtype
        # on a GPU without the kernel packing would cost more than the padding of sorted batches
        return model.can_pack and (model.device.type == "cpu" or has_kernel(model.device, dtype))

    def _windows(
        self, texts: list[TextOrPair], tasks: list[str]
    ) -> tuple[list[list[list[Span]]], list[tuple[int, Window, Reads]]]:
        """Units of each text; (row, window, the units read in it) for what the tasks need."""
        limit = window_length(self.tokenizer, self.model.usable_length)
        configs = [self.model.config.tasks[name] for name in tasks]
        if isinstance(texts[0], tuple):
            windows = self._windows_of_pairs(texts, tasks, limit)  # pyright: ignore
            return [[] for _ in texts], [(row, w, []) for row, of in enumerate(windows) for w in of]
        reads_words = any(config.head_class.decodes_spans for config in configs)
        read = [tokenizable(str(text)) for text in texts]
        words = [split_words(text) if reads_words else [] for text in read]
        encoded = encode_windows(self._tokenizer_for(limit, "windows"), read, words, limit)
        cut = [name for name in tasks if not self.model.config.tasks[name].reads_windows]
        self._tell_cut([len(windows) > 1 for windows in encoded], cut, limit)
        last = None if any(config.reads_windows for config in configs) else 1
        units, windows = [], []
        for row, windows_of_text in enumerate(encoded):
            of_text, reads = units_of(
                words[row], [window.first_tokens for window in windows_of_text]
            )
            units.append(of_text)
            windows += [
                (row, *pair) for pair in zip(windows_of_text[:last], reads[:last], strict=True)
            ]
        return units, windows

    def _windows_of_pairs(
        self, texts: list[tuple[str, str]], tasks: list[str], limit: int
    ) -> list[list[Window]]:
        """The windows of each pair; one of each where the tasks read the first alone."""
        pairs = [(tokenizable(one), tokenizable(other)) for one, other in texts]
        if self.model.config.tasks[tasks[0]].reads_windows:
            windows = encode_pairs(self._tokenizer_for(limit, "whole"), pairs, limit)
            self._tell_cut([of_pair[0].cut for of_pair in windows], tasks, limit)
            return windows
        first, second = (list(part) for part in zip(*pairs, strict=True))
        tokenizer = self._tokenizer_for(limit, "cut")
        encoded = tokenizer(first, second, truncation=True, max_length=limit)
        self._tell_cut([bool(e.overflowing) for e in encoded.encodings or ()], tasks, limit)
        types = encoded.get("token_type_ids")
        return [
            [Window(ids, types[row] if types else None)]
            for row, ids in enumerate(encoded["input_ids"])
        ]

    def _tell_cut(self, cut: list[bool], tasks: list[str], limit: int) -> None:
        """Say, once, that texts were too long for some tasks."""
        if tasks and any(cut) and "cut" not in self._told:
            self._told.add("cut")
            note = cut_note(sum(cut), len(cut), "texts", limit, tasks)
            logger.warning(f"{note}; this is said once")

    def _tokenizer_for(self, limit: int, way: str) -> PreTrainedTokenizerBase:
        """A tokenizer that is asked for nothing else than one of `WAYS` at one limit."""
        source = self.tokenizer
        key = (source, limit, way)
        if key not in self._tokenizers:
            with FIRST_USE:
                if key not in self._tokenizers:
                    tokenizer = copy.deepcopy(source)
                    WAYS[way](tokenizer, limit)  # sets how it cuts; later calls find it so
                    self._tokenizers[key] = tokenizer
        return self._tokenizers[key]

    def _without_dropout(self) -> Any:
        """The model, or one of the same weights in eval mode: another thread may be training it."""
        if not self.model.training:
            return self.model
        tensors = chain(self.model.parameters(), self.model.buffers())
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors}).eval()

    @torch.no_grad()
    def _encode(self, model: Any, entries: list[Entry]) -> list[dict[str, Tensor]]:
        """What its tasks give for each window: (L,) or (D,), or (its tokens, L)."""
        features: dict[str, list] = {"input_ids": [entry.window.input_ids for entry in entries]}
        if entries[0].window.token_type_ids is not None:
            features["token_type_ids"] = [entry.window.token_type_ids for entry in entries]
        lengths = [entry.length for entry in entries]
        packed = self.packs
        if packed:
            batch: Any = {k: torch.tensor([list(chain(*rows))]) for k, rows in features.items()}
            batch["cu_seq_lens_q"] = cumulative(torch.tensor(lengths))
            batch = {key: value.to(self.model.device) for key, value in batch.items()}
            batch["max_length_q"] = max(lengths)
        else:
            batch = self.tokenizer.pad(features, padding_side="right", return_tensors="pt")
            batch = batch.to(self.model.device)
        rows = _rows_of_tasks(entries)
        if any(len(numbers) < len(entries) for numbers in rows.values()):
            names = self.model.task_names
            ids = torch.full((len(entries), len(rows)), -1)
            for column, (name, numbers) in enumerate(rows.items()):
                ids[numbers, column] = names.index(name)
            batch["task_ids"] = ids
        output = model(**batch, tasks=list(rows))
        outputs: list[dict[str, Tensor]] = [{} for _ in entries]
        for name, values in {**(output.logits or {}), **(output.embeddings or {})}.items():
            values, tokens = values.float().cpu(), [lengths[row] for row in rows[name]]
            if values.dim() == 3:
                parts = values[0].split(tokens) if packed else values
                values = [part[:n] for part, n in zip(parts, tokens, strict=True)]
            for row, value in zip(rows[name], values, strict=True):
                outputs[row][name] = value
        return outputs

    # The base class runs text by text; `__call__` above replaces its loop, its hooks are refused.
    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        _refuse(set(parameters))
        return {}, {}, {}

    def preprocess(self, input_: Any, **_: Any) -> Any:
        """Refused: a call reads, encodes and decodes all texts together; see `__call__`."""
        raise NotImplementedError(CALL_IT)

    def _forward(self, input_tensors: Any, **_: Any) -> Any:
        raise NotImplementedError(CALL_IT)

    def postprocess(self, model_outputs: Any, **_: Any) -> Any:
        """Refused, as `preprocess` is."""
        raise NotImplementedError(CALL_IT)


def _rows_of_tasks(entries: list[Entry]) -> dict[str, list[int]]:
    """By task, the numbers of the windows that it reads."""
    rows: dict[str, list[int]] = {}
    for row, entry in enumerate(entries):
        for name in entry.tasks:
            rows.setdefault(name, []).append(row)
    return rows


def _check_model(model: Any) -> None:
    """Raise ValueError for what is no whole Polyhead; `transformers.pipeline` loads names."""
    if not hasattr(model, "set_compute") or hasattr(model, "show"):
        raise ValueError(
            f"model is {reprlib.repr(model)}; give a loaded Polyhead with all its tasks, as "
            "PolyheadModel.from_pretrained(folder), not a name, a view or another model"
        )


def _refuse(names: set[str]) -> None:
    """Raise ValueError for options that the constructor has no use for."""
    if names:
        raise ValueError(
            f"unknown option {', '.join(sorted(names))}; give options in the call, which takes "
            f"{', '.join(CALL_OPTIONS)}"
        )


def _check_options(options: dict[str, Any]) -> None:
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

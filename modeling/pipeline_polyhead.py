# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Text in, predictions out: one encoder pass per text for all chosen tasks.

Texts are sorted by length and, on CPUs, packed, so that a batch holds no padding (little, where the
encoder cannot read packed batches); results come back in the caller's order. Texts longer than the
encoder takes are read in overlapping windows by token tasks, and by others whose `long_texts` says
so; the rest read the first window.

One pipeline may be called from any number of threads: a call changes neither the model nor the
tokenizer. What a call does: its options and tasks are checked (`asked.py`), its texts cut into
windows (`text_windows.py`), these encoded (`passes.py`), and the answers read (`calls.py`).
"""

import copy
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Pipeline, PreTrainedTokenizerBase

from .asked import check_options, chosen_tasks, form_of_all, known_tasks, routed_tasks
from .calls import AutoCall, Call, Entry, Part
from .checks import check_tokenizer
from .compute import Mode, check_mode
from .encodings import Encodings
from .inputs import TextOrPair, form_of, read_inputs, read_items
from .passes import BATCH_TOKENS, MORE_TOKENS, cut_into_passes, encode_entries, packs
from .router import is_auto
from .text_windows import TextWindows
from .windows import window_length

CALL_OPTIONS = ("tasks", "top_k", "threshold", "batch_tokens", "batch_size", "document")
CALL_IT = "this pipeline has no single steps; call it: pipe(texts)"
NOT_OURS = ("batch_size", "num_workers", "binary_output")  # HF's constructor would take them
STRETCH = 1024  # texts of a generator that are sorted by length together


class PolyheadPipeline(Pipeline):
    """`pipeline(model=folder, trust_remote_code=True)`, or `PolyheadPipeline(model=, tokenizer=)`.

    Args:
        compute: how the encoder computes: `auto` (default), by what is fastest on this machine for
            the same numbers, measured here once a process; `exact`, as torch does; `bf16`. What
            was chosen, and why: `pipe.model.compute`. It is the model's: pipelines on one model
            share it.
        cache: the last so many windows of texts keep their encoding, so that a text that comes
            again, in any call and for any task, is not encoded anew: T x H numbers for each
            (100 KB for 64 tokens of 384). 0, the default, keeps none.

    Args (of a call):
        texts: one text, or a list, a column, a series, an array or another ordered iterable of
            texts; (text, text) tuples, or dicts of `text` and `text_pair`, for pair tasks; (text,
            [text, text]), or dicts of these, for tasks that choose. A generator is read as its
            answers are asked for.
        tasks: names of the tasks; None for every task that reads what is given (texts, pairs or
            choices); "auto" for those that the model's router finds in each text.
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
        and its probability among the choices. Below a task's `abstain` label and choice are None,
        and entities are left out. With tasks="auto" a dict has the router's name first, with
        `{"tasks", "scores"}` (see `Route`), then the tasks that the text is for; none, where
        `tasks` is [].

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

    def __init__(self, *args: Any, compute: Mode = "auto", cache: int = 0, **kwargs: Any) -> None:
        check_mode(compute)
        if type(cache) is not int or cache < 0:
            raise ValueError(f"cache is {cache!r}; give a number of encodings, 0 for none")
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
        self.windows = TextWindows()
        if cache and not hasattr(self.model, "encoder"):
            raise ValueError("cache: an exported model is one graph, without encodings to keep")
        self.encodings = Encodings(cache) if cache else None

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
        check_options(options)
        tasks = None if tasks is None else known_tasks(self.model.task_names, tasks)
        if isinstance(texts, Iterator):
            return self._stream(texts, tasks, options)
        inputs, single = read_inputs(texts)
        if not inputs:
            return []
        call = self._call(inputs, tasks, options)
        model = self._without_dropout()
        if batch_tokens is None:
            batch_tokens = BATCH_TOKENS.get(self.model.device.type, MORE_TOKENS)
        sizes: Any = {"batch_tokens": batch_tokens, "batch_size": batch_size}
        while entries := sorted(call.more(), key=lambda entry: -entry.length):
            lengths = [entry.length for entry in entries]
            for cut in cut_into_passes(lengths, packed=self.packs, **sizes):
                outputs = encode_entries(model, self.tokenizer, entries[cut], self.encodings)
                for entry, values in zip(entries[cut], outputs, strict=True):
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
    ) -> Call | AutoCall:
        """A call: `more()` gives windows for `encode`, until there are none; then `answers()`.

        Windows of several calls, of any tasks and adapters, may go into one pass. Arguments and
        errors are those of a call; `texts` is a list, and not empty.
        """
        options = {"top_k": top_k, "threshold": threshold, "document": document}
        check_options({**options, "batch_tokens": None, "batch_size": None})
        inputs, _ = read_inputs(texts)
        if not inputs:
            raise ValueError("texts is []; give one or more")
        return self._call(inputs, tasks, options)

    def encode(self, entries: list[Entry]) -> list[dict[str, Tensor]]:
        """One encoder pass: what the tasks of each window give for it; `entry.take` reads it."""
        return encode_entries(self._without_dropout(), self.tokenizer, entries, self.encodings)

    def _call(
        self, texts: list[TextOrPair], tasks: Sequence[str] | None, options: dict[str, Any]
    ) -> Call | AutoCall:
        names = self.choose_tasks(texts, tasks)
        if not is_auto(tasks):
            return self._read(texts, names, options)
        router, *known = names
        configs, document = self.model.config.tasks, int(options["document"])
        same_pass = [
            name
            for name in known
            if configs[name].adapter == configs[router].adapter
            and not configs[name].prompt(document)
        ]
        part = self._part(texts, [router, *same_pass], options)
        part.router = router
        return AutoCall(part, known, lambda texts, names: self._read(texts, names, options))

    def _read(self, texts: list[TextOrPair], tasks: list[str], options: dict[str, Any]) -> Call:
        chooses = form_of(texts[0]) == "choices"
        pairs: list[TextOrPair] = (
            [(one, other) for one, others in texts for other in others] if (chooses) else texts
        )
        parts = []
        for prompt, names in self._groups(tasks, int(options["document"]), form_of(texts[0])):
            read = [prompt + text for text in pairs] if prompt else pairs  # pyright: ignore
            parts.append(self._part(read, names, options))
        return Call(texts, tasks, parts, self.model.config.tasks, chooses)

    def _part(self, texts: list[TextOrPair], tasks: list[str], options: dict[str, Any]) -> Part:
        """Texts in windows, for tasks that read them alike."""
        configs = self.model.config.tasks
        asked = {name: options[name] for name in ("top_k", "threshold")}
        asked["tokenizer"] = self.tokenizer
        limit = window_length(self.tokenizer, self.model.usable_length)
        chosen = {name: configs[name] for name in tasks}
        units, windows = self.windows.of(self.tokenizer, texts, chosen, limit)
        part = Part(texts, tasks, configs, asked, units)
        entries = [Entry(window, part, row, reads) for row, window, reads in windows]
        part.entries = [entry for entry in entries if entry.tasks]
        return part

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
        first, forms = 0, ()
        while stretch := read_items(islice(texts, STRETCH), first):
            first += len(stretch)
            forms = (form_of_all(stretch, *forms),)
            yield from self(stretch, tasks, **options)  # pyright: ignore[reportReturnType]

    def choose_tasks(
        self, texts: list[TextOrPair], tasks: Sequence[str] | None = None
    ) -> list[str]:
        """The tasks that a call with these arguments runs; for "auto" the router, and all it knows.

        Raises:
            ValueError: a task is unknown, or does not read what is given (texts or pairs); or
                there is no router.
        """
        form = form_of_all(texts)
        if is_auto(tasks):
            routed = routed_tasks(self.model.config, form)
            return [self.model.config.router, *routed]
        names = self.model.task_names
        reads = {name: self.model.config.tasks[name].reads for name in names}
        return chosen_tasks(reads, form, None if tasks is None else known_tasks(names, tasks))

    @property
    def packs(self) -> bool:
        """Passes hold no padding: their cost is their tokens, not windows times the longest."""
        return packs(self.model)

    def _without_dropout(self) -> Any:
        """The model, or one of the same weights in eval mode: another thread may be training it."""
        if not self.model.training:
            return self.model
        tensors = chain(self.model.parameters(), self.model.buffers())
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors}).eval()

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

# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The last encodings of a pipeline: a text that comes again, for any task, is not encoded anew.

An encoding is the states of a window through an adapter. It is known by the window's tokens (so by
text, prompt and length), the adapter, and by the encoder it came from: where the encoder's weights
are, how often they were written in place, and samples of their values, since what is written
through `.data` is counted nowhere. Where one of these differs all encodings are forgotten.

Shapes: `T` tokens of a window, `P` of all, `H` hidden.
"""

from collections import OrderedDict
from collections.abc import Hashable
from itertools import chain
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from .calls import Entry
from .causal import check_causal, is_causal
from .early_exit import LayersRead
from .encoder import EncoderInputs, EncoderPass, encode
from .packing import TextLayout, cumulative, moved_to
from .routing import Routed
from .rows import read_rows
from .segments import Plan

SAMPLES = 16  # of a weight's values
Pair = tuple[str | None, int]  # adapter, number of the window in the pass
States = tuple[Tensor, ...]  # (T, H) of the last layer, or of all where heads read them


class Encodings:
    """The last `size` encodings; any number of threads may ask.

    Args:
        size: how many windows are kept, each T x H numbers.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._states: OrderedDict[Hashable, States] = OrderedDict()
        self._encoder: Hashable = None
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._states)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._states.clear()

    def outputs(
        self, model: Any, entries: list[Entry], tasks: list[str], task_ids: Tensor | None
    ) -> Any:
        """What a pass over these windows gives, packed; those that are known are not encoded.

        Args:
            model: the model, without dropout.
            entries: the windows.
            tasks: the heads to run.
            task_ids: (N, K), where not every head reads every window.
        """
        count = len(entries)
        read = read_rows(model.config.tasks, model.task_names, tasks, task_ids, count)
        adapters = model.adapters_of_texts(read.names, read.rows, count)
        by_row = adapters if isinstance(adapters, list) else [[adapters]] * count
        pairs = [(name, row) for row, names in enumerate(by_row) for name in names]
        states = self._states_of(model, entries, pairs, deep=model.reads_all_layers(read.names))
        return model.run_heads(_joined(states, pairs), read)

    def _states_of(
        self, model: Any, entries: list[Entry], pairs: list[Pair], *, deep: bool
    ) -> list[States]:
        """The states of windows through adapters; of all layers where it is `deep`."""
        keys = [_key(entries[row], adapter, deep=deep) for adapter, row in pairs]
        before = encoder_state(model)
        with self._lock:
            if before != self._encoder:
                self._states.clear()
                self._encoder = before
            known = {key: self._states[key] for key in keys if key in self._states}
            for key in known:
                self._states.move_to_end(key)
        absent = {k: pair for k, pair in zip(keys, pairs, strict=True) if k not in known}
        if absent:
            found = _encode(model, entries, list(absent.values()), deep=deep)
            new = {key: found[pair] for key, pair in absent.items()}
            known |= new
            after = encoder_state(model)
            with self._lock:
                if before == after == self._encoder:  # nobody trained it meanwhile
                    self._states |= new
                    while len(self._states) > self.size:
                        self._states.popitem(last=False)
        return [known[key] for key in keys]


def _key(entry: Entry, adapter: str | None, *, deep: bool) -> Hashable:
    window = entry.window
    types = None if window.token_type_ids is None else tuple(window.token_type_ids)
    return tuple(window.input_ids), types, adapter, deep


@torch.no_grad()
def encoder_state(model: Any) -> Hashable:
    """What tells an encoder, as it is now, from another one."""
    tensors = [*model.encoder.parameters(), *model.encoder.buffers()]
    samples = [t.reshape(-1)[:: max(1, t.numel() // SAMPLES)].double().cpu() for t in tensors]
    layers: Any = [module for module in model.encoder.modules() if isinstance(module, Routed)]
    return (
        tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors),  # noqa: SLF001
        torch.cat(samples).numpy().tobytes(),
        repr([(x.merged_adapters, x.disable_adapters, getattr(x, "scaling", ())) for x in layers]),
        repr(model.compute.chosen),
        torch.is_autocast_enabled(model.device.type),
    )


def _encode(
    model: Any, entries: list[Entry], pairs: list[Pair], *, deep: bool
) -> dict[Pair, States]:
    """The states of some windows through some adapters."""
    if is_causal(model.encoder.config):
        check_causal(model.encoder)
    rows = sorted({row for _, row in pairs})
    windows = [entries[row].window for row in rows]
    features: dict[str, list] = {"input_ids": [window.input_ids for window in windows]}
    if windows[0].token_type_ids is not None:
        features["token_type_ids"] = [window.token_type_ids for window in windows]
    packed = {name: [list(chain(*ids))] for name, ids in features.items()}
    laid: Any = {name: torch.tensor(ids, device=model.device) for name, ids in packed.items()}
    lengths = [len(window.input_ids) for window in windows]
    encoded = encode(
        model.encoder,
        EncoderInputs(**laid, max_length_q=max(lengths), output_hidden_states=deep or None),
        cu_seq_lens=cumulative(torch.tensor(lengths)),
        adapters=[[adapter for adapter, r in pairs if r == row] for row in rows],
        routed=bool(model.config.adapters),
        compute=model.compute,
        packs=model.can_pack,
        read=LayersRead(),  # what is kept is for other tasks too: no layer is skipped
    )
    last: Any = encoded.output.last_hidden_state
    layers = (*(encoded.output.hidden_states or ())[:-1], last) if deep else (last,)
    sizes = encoded.texts.host_lengths.tolist()
    parts = list(zip(*(layer[0].split(sizes) for layer in layers), strict=True))
    plan, place = encoded.plan, {row: number for number, row in enumerate(rows)}
    moved = None if plan is None or plan.source is None else plan.position_of
    found = {}
    for adapter, row in pairs:
        number = place[row] if moved is None else moved[adapter, place[row]]
        found[adapter, row] = tuple(part.clone() for part in parts[number])
    return found


def _joined(states: list[States], pairs: list[Pair]) -> EncoderPass:
    """A pass over all windows, of states that may come from several."""
    layers = [torch.cat(of_layer).unsqueeze(0) for of_layer in zip(*states, strict=True)]
    length_of = {row: len(of_pair[0]) for (_, row), of_pair in zip(pairs, states, strict=True)}
    host = cumulative(torch.tensor([len(of_pair[0]) for of_pair in states]))
    caller = cumulative(torch.tensor([length_of[row] for row in sorted(length_of)]))
    starts = caller.tolist()
    tokens = torch.cat([torch.arange(starts[row], starts[row + 1]) for _, row in pairs])
    near = layers[-1]
    plan = Plan(
        [],
        source=moved_to(torch.tensor([row for _, row in pairs]), near),
        tokens=moved_to(tokens, near),
        position_of={pair: number for number, pair in enumerate(pairs)},
    )
    texts, callers = (TextLayout(cu_seq_lens=moved_to(h, near), host=h) for h in (host, caller))
    output = BaseModelOutput(last_hidden_state=near, hidden_states=tuple(layers))  # pyright: ignore
    return EncoderPass(output, texts, callers, plan)

"""Eight tasks asked one after the other about the same texts: their encodings kept, or not.

What a stream is like in which each consumer asks for its own task. The answers are compared first,
within 1e-5. Needs `POLYHEAD_DATA`.
"""

import argparse
from typing import Any

import numpy as np
import torch
from common import SEED, alternate, encoder_folder, quiet, real_texts, report
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from transformers import AutoTokenizer

KEPT, NOT = "encodings kept", "not kept"


def main() -> None:
    """Compare answers, then time in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    quiet()
    torch.manual_seed(SEED)
    labels = [str(number) for number in range(20)]
    tasks = {
        f"class{n}": TaskConfig(head="sequence_classification", labels=labels) for n in (1, 2, 3, 4)
    }
    tags = ["O", "B-x", "I-x"]
    tasks |= {f"tags{n}": TaskConfig(head="token_classification", labels=tags) for n in (1, 2, 3)}
    tasks["vector"] = TaskConfig(head="embedding")
    model = PolyheadModel.from_encoder(encoder_folder(), tasks)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    parts: Any = {"model": model, "tokenizer": tokenizer, "device": "cpu", "compute": "exact"}
    pipes = {
        KEPT: PolyheadPipeline(**parts, cache=10 * options.texts),
        NOT: PolyheadPipeline(**parts),
    }
    texts = real_texts(options.texts)

    def run(name: str) -> list[Any]:
        pipe = pipes[name]
        if pipe.encodings is not None:
            pipe.encodings.clear()  # each turn begins with none
        return [pipe(texts, [task]) for task in tasks]

    for one, other in zip(run(KEPT), run(NOT), strict=True):
        compare(one, other)
    seconds = alternate({name: lambda name=name: run(name) for name in pipes}, options.repeats)
    report("encodings", f"8 tasks, a call each, of {len(texts)} real texts", NOT, KEPT, seconds)


def compare(one: Any, other: Any) -> None:
    """The same answers, numbers within 1e-5."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for part, of_other in zip(one, other, strict=True):
            compare(part, of_other)
    elif isinstance(one, str):
        assert one == other, (one, other)
    else:
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


if __name__ == "__main__":
    main()

"""A call of a task that reads a lower layer against one of a task that reads the last."""

import torch
from common import SEED, alternate, encoder_folder, messages, report
from polyhead.modeling import PolyheadModel, TaskConfig
from transformers import AutoTokenizer


def main() -> None:
    """64 messages in batches of 32; one head over 20 classes on layer 2, 4 or 6 of 6."""
    torch.manual_seed(SEED)
    labels = [str(number) for number in range(20)]
    tasks = {
        f"layer{layer}": TaskConfig(head="sequence_classification", labels=labels, layer=layer)
        for layer in (2, 4, 6)
    }
    model = PolyheadModel.from_encoder(encoder_folder(), tasks).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    texts = sorted(messages(64), key=len)
    batches = [tokenizer(texts[i : i + 32], padding=True, return_tensors="pt") for i in (0, 32)]

    @torch.no_grad()
    def run(name: str) -> None:
        for batch in batches:
            model(**batch, tasks=[name])

    seconds = alternate({name: lambda name=name: run(name) for name in tasks}, 9)
    for name in ("layer2", "layer4"):
        title = f"a call that reads layer {name[-1]} of 6"
        report(f"early_exit_{name}", title, name, "layer6", seconds)


if __name__ == "__main__":
    main()

"""Eight heads on a text against one head: what a task costs once the encoder has run."""

import torch
from common import SEED, alternate, encoder_folder, messages, report
from polyhead.modeling import PolyheadModel, TaskConfig
from transformers import AutoTokenizer


def main() -> None:
    """64 messages in batches of 32."""
    torch.manual_seed(SEED)
    tasks = {
        f"class{i}": TaskConfig(head="sequence_classification", labels=[str(n) for n in range(20)])
        for i in range(4)
    }
    tags = ["O", "B-x", "I-x"]
    tasks |= {f"tags{i}": TaskConfig(head="token_classification", labels=tags) for i in range(3)}
    tasks["vector"] = TaskConfig(head="embedding")
    model = PolyheadModel.from_encoder(encoder_folder(), tasks)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    texts = sorted(messages(64), key=len)
    batches = [tokenizer(texts[i : i + 32], padding=True, return_tensors="pt") for i in (0, 32)]

    @torch.no_grad()
    def run(names: list[str]) -> None:
        for batch in batches:
            model(**batch, tasks=names)

    seconds = alternate({"1 head": lambda: run(["class0"]), "8 heads": lambda: run(list(tasks))}, 9)
    report("heads", "8 heads on one text", "8 heads", "1 head", seconds)


if __name__ == "__main__":
    main()

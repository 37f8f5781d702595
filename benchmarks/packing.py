"""A training step on padded and on packed batches: same rows, same loss, less to compute."""

import torch
from common import SEED, alternate, encoder_folder, messages, report
from polyhead.modeling import PolyheadModel, TaskConfig
from polyhead.modeling.packing import cumulative
from transformers import AutoTokenizer


def main() -> None:
    """Four batches of 32 messages in file order, forward, backward and AdamW."""
    torch.manual_seed(SEED)
    task = TaskConfig(head="sequence_classification", labels=["x", "y"], dropout=0.0)
    model = PolyheadModel.from_encoder(encoder_folder(), {"intent": task})
    model.eval()  # dropout off: the losses are compared
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    texts = messages(128)
    padded, packed = [], []
    for start in range(0, 128, 32):
        part = texts[start : start + 32]
        padded.append(dict(tokenizer(part, padding=True, return_tensors="pt")))
        ids = sorted(tokenizer(part)["input_ids"], key=len)
        lengths = torch.tensor([len(row) for row in ids])
        flat = torch.tensor([[token for row in ids for token in row]])
        packed.append({"input_ids": flat, "cu_seq_lens_q": cumulative(lengths)})
    labels = {"intent": torch.zeros(32, dtype=torch.long)}
    real = sum(int(batch["attention_mask"].sum()) for batch in padded)
    total = sum(batch["input_ids"].numel() for batch in padded)
    print(f"{real} tokens in {total} padded places: {1 - real / total:.0%} padding")
    for one, other in zip(padded, packed, strict=True):
        losses = [model(**batch, labels=labels).loss for batch in (one, other)]
        torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run(batches: list[dict]) -> None:
        for batch in batches:
            optimizer.zero_grad()
            model(**batch, labels=labels).loss.backward()
            optimizer.step()

    seconds = alternate({"padded": lambda: run(padded), "packed": lambda: run(packed)})
    report("packing", "training step, 32 messages", "padded", "packed", seconds)


if __name__ == "__main__":
    main()

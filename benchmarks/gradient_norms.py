"""Gradient norms by layer of new encoders, with the norm before each layer and behind it.

Masked LM on real texts with random weights, 24 layers of 64: behind (bert) the gradient of a layer
depends on how deep it lies, before it (modernbert) hardly (arXiv:2002.04745). A minute.
"""

import statistics
from typing import Any

import matplotlib.pyplot as plt
import torch
from common import RESULTS, encoder_folder, keep, quiet, real_texts
from polyhead.modeling import PolyheadConfig, PolyheadModel, TaskConfig
from transformers import AutoConfig, AutoTokenizer

LAYERS = 24
SEEDS = (0, 1, 2)
KINDS = {
    "bert": "behind each layer (bert)",
    "modernbert": "before each layer (modernbert)",
    "roberta-prelayernorm": "before each layer (roberta-prelayernorm)",
}


def norms(kind: str, batch: Any, seed: int) -> list[float]:
    """Gradient norm of all weights of each layer at the first step, from the bottom."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=int(batch["input_ids"].max()) + 1,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=256,
        initializer_range=64**-0.5,  # as the paper has it
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    tasks = {"words": TaskConfig(head="masked_lm")}
    model = PolyheadModel(PolyheadConfig(encoder_config=config, tasks=tasks)).eval()
    labels = batch["input_ids"].where(torch.rand(batch["input_ids"].shape) < 0.15, -100)
    labels = labels.masked_fill(batch["attention_mask"] == 0, -100)
    model(**batch, labels={"words": labels}).loss.backward()
    squares = [0.0] * LAYERS
    for name, parameter in model.encoder.named_parameters():
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if number is not None and parameter.grad is not None:
            squares[number] += float(parameter.grad.square().sum())
    return [square**0.5 for square in squares]


def main() -> None:
    """Three seeds of each kind; a picture of the medians."""
    quiet()
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    texts = real_texts(16)
    batch = dict(
        tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    )
    batch.pop("token_type_ids", None)
    figure, axes = plt.subplots(figsize=(6, 4.8), layout="constrained")
    medians = {}
    for kind, label in KINDS.items():
        runs = [norms(kind, batch, seed) for seed in SEEDS]
        medians[kind] = [statistics.median(values) for values in zip(*runs, strict=True)]
        axes.plot(range(1, LAYERS + 1), medians[kind], marker="o", markersize=3, label=label)
        print(f"{kind}: layer 1 {medians[kind][0]:.4f}, layer {LAYERS} {medians[kind][-1]:.4f}")
    axes.set(xlabel="layer, from the bottom", ylabel="gradient norm", yscale="log")
    axes.set_title("Gradient norms of new encoders, first step")
    figure.legend(loc="outside lower center", title="layer norm")
    figure.savefig(RESULTS / "gradient_norms.png", dpi=120)
    rounded = {kind: [float(f"{value:.3g}") for value in row] for kind, row in medians.items()}
    keep("gradient_norms", "gradient norm by layer, first step", {"norms": rounded, "seeds": SEEDS})


if __name__ == "__main__":
    main()

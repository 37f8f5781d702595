"""Training and embedding on one GPU, in bf16, beside HF's Trainer and sentence-transformers.

    python benchmarks/gpu.py

Training: BERT-base's size with random weights, a classifier over real text of mixed length (3 to
400 tokens), AdamW, batches of 256 rows; HF's Trainer with bf16 and sdpa on the batches that our
sampler draws. Only real tokens count. No dropout in attention on either side, so that flash
attention's kernel for packed texts can be taken.

MFU: the floating-point operations of the model's definition over what the device could do in that
time. A token of a text of T tokens takes 6 N + 12 L H T in training (forward and backward; N
weights of the encoder without its embeddings, L layers, H hidden; arXiv:2204.02311, appendix B).

Waits: how often the host waits for the device in a step, by torch's profiler, on both sides.

Embedding: all-MiniLM-L6-v2 in bf16, tokenisation included. Needs `POLYHEAD_DATA`. Without a GPU it
ends with code 2; `--device cpu --tiny` tries the script itself.
"""

import argparse
import statistics
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from common import alternate, encoder_folder, keep, quiet, ratio_spread, real_rows, real_texts
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from sentence_transformers import SentenceTransformer
from torch.profiler import ProfilerActivity, profile
from training import OURS, PEER, sides_of, train
from transformers import AutoTokenizer, BertConfig, BertModel

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
PEAK = 989e12  # bf16 operations a second of one H100 or H200, dense
ROWS = 2400  # its smallest source has 614 that fit
WARM_UP = 5  # steps in which the GPU's memory is still asked for


def main() -> None:
    """Train and embed in turns."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak", type=float, default=PEAK, help="operations a second")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no GPU; this benchmark needs one", file=sys.stderr)
        sys.exit(2)
    quiet()
    results = {"training": training(options), "embedding": embedding(options)}
    device = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    if not options.tiny:
        keep("gpu", f"one {device}, bf16", {"device": device, **results})


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Real tokens a second of both trainers, and our MFU."""
    rows = real_rows(64 if options.tiny else ROWS)
    rates: dict[str, list[float]] = {PEER: [], OURS: []}
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = random_encoder(folder, tiny=options.tiny)
        size, steps = (16, WARM_UP + 2) if options.tiny else (256, WARM_UP + 12)
        arguments = {"per_device_train_batch_size": size, "max_steps": steps, "bf16": True}
        arguments |= {"learning_rate": 5e-5, "report_to": "none", "save_strategy": "no"}
        arguments |= {"eval_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
        arguments["use_cpu"] = options.device == "cpu"
        for turn in range(options.repeats):
            sides = sides_of(rows, folder, folder, {**arguments, "seed": turn})
            for name in rates:
                rate, _, lengths = train(sides[name], WARM_UP)
                rates[name].append(rate)
                if name == OURS:
                    shares.append(rate * operations(config, lengths) / options.peak)
        sides = sides_of(rows, folder, folder, arguments)
        waits = {name: waits_of(sides[name]) for name in rates}
    ratio = statistics.median(rates[OURS]) / statistics.median(rates[PEER])
    results = {
        "tokens a second": {name: round(statistics.median(v)) for name, v in rates.items()},
        "ratio": round(ratio, 3),
        "ratio spread": ratio_spread(rates[OURS], rates[PEER]),
        "MFU": round(statistics.median(shares), 3),
        "waits a step": waits,
    }
    print(f"training: {results}", flush=True)
    return results


def waits_of(trainer: Any) -> float:
    """How often the host waits for the device, for each step of a training."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=activities) as profiler:
        train(trainer, WARM_UP)
    calls = sum(event.count for event in profiler.key_averages() if event.key in WAITS)
    return round(calls / trainer.args.max_steps, 1)


def random_encoder(folder: str, *, tiny: bool) -> BertConfig:
    """BERT-base's size in `folder`, with MiniLM's tokenizer."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2} if tiny else {}
    config = BertConfig(attention_probs_dropout_prob=0.0, **size)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return config


def operations(config: BertConfig, lengths: list[int]) -> float:
    """Floating-point operations for each token of these texts, in training."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    weights = layers * hidden * (4 * hidden + 2 * config.intermediate_size)
    seen = sum(n * n for n in lengths) / sum(lengths)  # tokens that a token attends to
    return 6 * weights + 12 * layers * hidden * seen


def embedding(options: argparse.Namespace) -> dict[str, Any]:
    """Texts a second of both, and the least cosine between their vectors."""
    texts, path = real_texts(64) if options.tiny else 3 * real_texts(ROWS), encoder_folder()
    low: Any = {"dtype": torch.bfloat16}
    theirs = SentenceTransformer(path, device=options.device, model_kwargs=low)
    theirs.max_seq_length = 512
    model = PolyheadModel.from_encoder(path, {"near": TaskConfig(head="embedding")}, **low)
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    tokenizer.model_max_length = 512
    pipe = PolyheadPipeline(
        model=model.to(options.device), tokenizer=tokenizer, device=options.device
    )
    peer = "sentence-transformers"
    runs = {
        peer: lambda: theirs.encode(texts, batch_size=256),
        OURS: lambda: np.stack([answer["near"] for answer in pipe(texts, ["near"])]),  # pyright: ignore
    }
    one, other = (np.asarray(run(), dtype=np.float32) for run in runs.values())
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = float(((one * other).sum(1) / lengths).min())
    assert cosine > 0.99, cosine
    seconds = alternate(runs, options.repeats)
    results = {
        "texts a second": {n: round(len(texts) / statistics.median(v)) for n, v in seconds.items()},
        "ratio": round(statistics.median(seconds[peer]) / statistics.median(seconds[OURS]), 3),
        "ratio spread": ratio_spread(seconds[peer], seconds[OURS]),
        "least cosine": round(cosine, 5),
    }
    print(f"embedding: {results}", flush=True)
    return results


if __name__ == "__main__":
    main()

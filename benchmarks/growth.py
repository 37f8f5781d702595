"""How time grows with tasks, rows, length of texts and processes; a table and a picture of it.

    tasks      one forward over 32 messages, all heads on each text, half of them with a label for
               each token: 1 to 64 tasks
    rows       `PolyheadPipeline` on 100 and 1,000 messages; larger numbers are extrapolated from
               the last, and marked so
    tokens     an encoder of MiniLM's size with random weights and 2,048 positions, texts of mixed
               length (a quarter of the longest to the longest): time for each real token, packed
               and padded
    processes  from `results/processes.json`, where `processes.py` left it

Medians of runs in turns. First the states of packed and padded texts are compared.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, SEED, alternate, encoder_folder, keep, messages, quiet, summary
from matplotlib.figure import Figure
from polyhead.modeling import PolyheadConfig, PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.packing import cumulative
from polyhead.train.reports.figures import draw
from transformers import AutoTokenizer, BertConfig

TASKS = (1, 2, 4, 8, 16, 32, 64)
ROWS = (100, 1000)
EXTRAPOLATED = (10_000, 100_000, 1_000_000)
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
PASS = 2048  # tokens of the texts of one length, at least


def main() -> None:
    """Measure, keep and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    options = parser.parse_args()
    quiet()
    torch.manual_seed(SEED)
    results = {
        "tasks": by_tasks(options.repeats),
        "rows": by_rows(options.rows, options.repeats),
        "tokens": by_length([n for n in LENGTHS if n <= options.longest], options.repeats),
        "processes": by_processes(),
    }
    keep("growth", "seconds, by number of tasks, rows, tokens and processes", results)
    path = draw(RESULTS, {"growth": picture}, ["growth"], results)[0]
    print(f"{path}")


def seconds_of(
    what: str, runs: dict[str, Callable[[], Any]], repeats: int, digits: int = 4
) -> dict[str, Any]:
    """Median and spread of each run, in turns."""
    seconds = {name: summary(values, digits) for name, values in alternate(runs, repeats).items()}
    shown = (f"{name}: {values['median']:.4g} s" for name, values in seconds.items())
    print(f"{what}  {', '.join(shown)}", flush=True)
    return seconds


def by_tasks(repeats: int) -> dict[str, Any]:
    """A forward of one batch with so many heads."""
    classes, tags = [str(n) for n in range(20)], ["O", "B-x", "I-x", "B-y", "I-y"]
    tasks = {}
    for number in range(TASKS[-1]):
        sequence = number % 2 == 0
        head = "sequence_classification" if sequence else "token_classification"
        tasks[f"task{number}"] = TaskConfig(head=head, labels=classes if sequence else tags)
    model = PolyheadModel.from_encoder(encoder_folder(), tasks)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    batch = packed(sorted(tokenizer(messages(32))["input_ids"], key=len))

    @torch.no_grad()
    def run(count: int) -> None:
        model(**batch, tasks=list(tasks)[:count])

    return seconds_of("tasks", {str(n): lambda n=n: run(n) for n in TASKS}, repeats)


def by_rows(counts: list[int], repeats: int) -> dict[str, Any]:
    """The pipeline on so many messages, a label for each; beyond, in proportion to the last."""
    task = TaskConfig(head="sequence_classification", labels=["x", "y"])
    model = PolyheadModel.from_encoder(encoder_folder(), {"intent": task})
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    pipe = PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu")
    texts = messages(max(counts))
    seconds_by_rows = seconds_of(
        "rows", {str(n): lambda n=n: pipe(texts[:n]) for n in counts}, repeats
    )
    last = counts[-1]
    for number in EXTRAPOLATED:
        seconds = seconds_by_rows[str(last)]["median"] / last * number
        seconds_by_rows[str(number)] = {"median": round(seconds, 1), "extrapolated": True}
    return seconds_by_rows


def by_length(longest: list[int], repeats: int) -> dict[str, Any]:
    """Microseconds for each real token of texts up to so long, packed and padded."""
    encoder = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=LENGTHS[-1],
    )
    task = TaskConfig(head="embedding")
    model = PolyheadModel(PolyheadConfig(encoder_config=encoder, tasks={"near": task})).eval()
    rates = {}
    for number in longest:
        count = max(4, PASS // number)
        lengths = torch.linspace(number / 4, number, count).long().tolist()
        ids = [torch.randint(1000, 20_000, (n,)).tolist() for n in lengths]
        batches = {"packed": packed(ids), "padded": padded(ids)}

        @torch.no_grad()
        def run(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            output = model(**batch)
            return output.embeddings["near"]

        one, other = (run(batch) for batch in batches.values())
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        runs = {name: lambda batch=batch: run(batch) for name, batch in batches.items()}
        values = alternate(runs, repeats)
        each = {n: [1e6 * s / sum(lengths) for s in part] for n, part in values.items()}
        rates[str(number)] = {name: summary(part) for name, part in each.items()}
        shown = (f"{name} {v['median']:.0f}" for name, v in rates[str(number)].items())
        print(f"up to {number} tokens, microseconds a token: {', '.join(shown)}", flush=True)
    return rates


def packed(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Texts end to end."""
    ends = cumulative(torch.tensor([len(row) for row in ids]))
    return {"input_ids": torch.tensor([sum(ids, [])]), "cu_seq_lens_q": ends}


def padded(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """A text a row, filled up with zeros."""
    longest = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    return {"input_ids": rows, "attention_mask": mask}


def by_processes() -> dict[str, Any]:
    """Rows a second that training in 1 and 2 processes reached."""
    path = RESULTS / "processes.json"
    if not path.is_file():
        print("processes: not measured; type: python benchmarks/processes.py")
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))["rows a second"]
    return {str(n): table[f"{n} processes"] for n in (1, 2)}


# ---- the picture ----


def picture(results: dict[str, Any]) -> Figure:
    """Four panels; a thin grey line is growth in proportion, or none."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    (tasks, rows), (tokens, processes) = figure.subplots(2, 2)
    lines(tasks, "", results["tasks"], 1000)
    tasks.set(xscale="log", ylim=(0, None), xlabel="tasks", ylabel="milliseconds")
    ticks(tasks, TASKS)
    tasks.set_title("a forward of 32 messages, all heads on each")
    known = {n: v for n, v in results["rows"].items() if "extrapolated" not in v}
    lines(rows, "measured", known, 1)
    last = list(known)[-1]
    rest = {n: v for n, v in results["rows"].items() if n == last or n not in known}
    numbers = [int(n) for n in rest]
    style = {"color": "grey", "markerfacecolor": "white"}
    rows.plot(numbers, [v["median"] for v in rest.values()], "o--", label="extrapolated", **style)
    rows.set(xscale="log", yscale="log", xlabel="messages", ylabel="seconds")
    rows.set_title("the pipeline on one thread")
    for name in ("packed", "padded"):
        lines(tokens, name, {n: v[name] for n, v in results["tokens"].items()}, 1)
    tokens.set(xscale="log", ylim=(0, None), xlabel="tokens of the longest text")
    tokens.set(ylabel="microseconds a real token")
    ticks(tokens, [int(n) for n in results["tokens"]])
    tokens.set_title("texts of mixed length, MiniLM's size")
    if results["processes"]:
        lines(processes, "measured", results["processes"], 1)
        first = results["processes"]["1"]["median"]
        processes.plot([1, 2], [first, 2 * first], "--", color="grey", label="in proportion")
        processes.legend()
    processes.set(ylim=(0, None), xlabel="processes of one thread", ylabel="rows a second")
    processes.set(
        xticks=[1, 2], title="training" + ("" if results["processes"] else ": not measured")
    )
    rows.legend()
    tokens.legend()
    return figure


def lines(axes: Any, label: str, values: dict[str, Any], factor: float) -> None:
    """Medians with their spread."""
    numbers = [int(n) for n in values]
    middle = [factor * v["median"] for v in values.values()]
    ends = [[factor * v["spread"][k] for v in values.values()] for k in (0, 1)]
    axes.plot(numbers, middle, "o-", markersize=4, label=label)
    axes.fill_between(numbers, *ends, alpha=0.2)


def ticks(axes: Any, numbers: Any) -> None:
    """The numbers that were measured, and none between."""
    axes.set_xticks(list(numbers), [f"{number:,}" for number in numbers])
    axes.minorticks_off()


if __name__ == "__main__":
    main()

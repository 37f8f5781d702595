"""What evaluation scores is what the pipeline answers: the same entities, to the character."""

import copy
import random

import pytest
import torch
from polyhead.modeling import PolyheadPipeline, TaskConfig
from polyhead.modeling.decoding import word_tags
from polyhead.modeling.windows import joined_words
from polyhead.train.commands.scoring import evaluate
from polyhead.train.data.loading import Source
from polyhead.train.errors import UserError
from polyhead.train.evaluation.scoring import eval_splits
from polyhead.train.trainer import MultiTaskTrainer
from train_helpers import (
    private_cache,  # noqa: F401
    sources_of,
    task,
    write_recipe,
    write_rows,
)
from transformers import TrainingArguments

ENCODER = {"wordpiece": "bert", "bpe": "roberta", "unigram": "xlm-roberta"}
LABELS = {
    "iob1": ["O", "B-x", "I-x", "B-y", "I-y"],
    "iob2": ["O", "B-x", "I-x", "B-y", "I-y"],
    "bioes": ["O", *(f"{prefix}-{kind}" for kind in "xy" for prefix in "BIES")],
    None: ["ADJ", "NOUN", "VERB"],
}
PIECES = [
    *[
        "Paris",
        "train",
        "now",
        "vera@firm-x.example",
        "O'Brien",
        "U.S.",
        "£5",
        "$100",
        "20°c",
        "(Acme)",
        "...",
        "go🎉🎉now",
    ],
    *[
        "東京に行く",
        "Zürich",
        "café",
        "naïve",
        "हिन्दी",
        "e-mail's",
        "x_y",
        "3.5%",
        "?!",
        '."',
        "),",
        "\u200b",
        "--",
        "½kg",
    ],
]


def rows_of_words(seed, count=14):
    """White space words full of signs; every sixth row is several windows long."""
    draw = random.Random(seed)
    sizes = [draw.randint(60, 90) if n % 6 == 0 else draw.randint(0, 9) for n in range(count)]
    return [[draw.choice(PIECES) for _ in range(size)] for size in sizes]


def labelled(pipe, words, scheme, seed):
    """Rows whose tags are now the pipeline's answers as tags of words, now those to another row."""
    draw, lines = random.Random(seed), []
    texts = [" ".join(row) for row in words]
    for row, answer in zip(words, pipe(texts, tasks=["one"]), strict=True):
        tags = word_tags(answer["one"], joined_words(row), scheme)
        if draw.random() < 0.4:
            tags = ["O" if scheme else "NOUN"] * len(row)
        lines.append({"tokens": row, "tags": [tag or "NOUN" for tag in tags]})
    return lines


def f1_of_pipeline(pipe, lines, read):
    """Entity F1 by the texts, the pipeline's answers and `read`, tags to (kind, first, last)."""
    answers = pipe([" ".join(line["tokens"]) for line in lines], tasks=["one"])
    hits = count = 0
    for line, answer in zip(lines, answers, strict=True):
        spans = joined_words(line["tokens"])
        true = {(k, spans[a][0], spans[b][1]) for k, a, b in read(line["tags"])}
        found = {(e["entity_group"], e["start"], e["end"]) for e in answer["one"]}
        hits, count = hits + len(true & found), count + len(true) + len(found)
    return 2 * hits / count if count else 0.0


def entities(tags):
    """(kind, first, last) of legal tags, by the letters: B, S and a change of kind begin one."""
    found, before = [], "O"
    for number, tag in enumerate(tags):
        if tag != "O" and (
            tag[0] in "BS" or before == "O" or before[2:] != tag[2:] or before[0] in "ES"
        ):
            found.append([tag[2:], number, number])
        elif tag != "O":
            found[-1][2] = number
        before = tag
    return [tuple(entity) for entity in found]


@pytest.fixture
def pipe_of(make_model, tokenizer_of):
    """(family, scheme) -> pipeline of a random model with all its labels in use."""

    def make(family, scheme, signs=None):
        config = TaskConfig(
            head="token_classification", labels=LABELS[scheme], scheme=scheme, signs=signs
        )
        model, tokenizer = make_model(ENCODER[family], {"one": config}), tokenizer_of(family)
        with torch.no_grad():  # centred, and in favour of O
            batch = tokenizer(PIECES, padding=True, return_tensors="pt")
            logits = model(**batch).logits["one"][batch["attention_mask"].bool()]
            model.heads["one"].out.bias -= logits.mean(0)
            model.heads["one"].out.weight *= 3
            if scheme:
                model.heads["one"].out.bias[0] += 1
        return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu", compute="exact")

    return make


def scores_of(pipe, source: Source, folder):
    """What a Trainer's evaluation says of a split."""
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        per_device_eval_batch_size=5,
    )
    model, tokenizer = pipe.model, pipe.tokenizer
    trainer = MultiTaskTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        sources={source.name: list(source.tasks)},
    )
    parts = eval_splits([source], "test", tokenizer, model.config.tasks)
    return trainer.evaluate_tasks(parts)[0]["one"]


def source_of(tmp_path, lines, **options):
    path = str(write_rows(tmp_path / "rows.jsonl", lines))
    files = {"data_files": {"train": path, "test": path}, "tokens": "tokens", "label": "tags"}
    (source,) = sources_of(one=task("token_classification", **files, **options))
    return source


CASES = [(f, s, None) for f in ENCODER for s in ("iob2", "bioes")]
CASES += [("bpe", "iob1", None), ("unigram", None, None), ("wordpiece", "iob2", [])]


@pytest.mark.parametrize(("family", "scheme", "signs"), [*CASES, ("unigram", "bioes", [".", "'"])])
def test_the_score_is_that_of_the_pipelines_answers(family, scheme, signs, pipe_of, tmp_path):
    pipe = pipe_of(family, scheme, signs)
    lines = labelled(pipe, rows_of_words(1), scheme, 2)
    source = source_of(tmp_path, lines, scheme=scheme)
    assert any(len(set(line["tags"])) > 1 for line in lines)
    found = scores_of(pipe, source, tmp_path)
    if scheme is None:
        answers = pipe([" ".join(line["tokens"]) for line in lines])
        hits = [
            tag == next(e["entity_group"] for e in answer["one"] if e["end"] > start)
            for line, answer in zip(lines, answers, strict=True)
            for tag, (start, _) in zip(line["tags"], joined_words(line["tokens"]), strict=True)
        ]
        assert found == {"token_accuracy": sum(hits) / len(hits)}
        assert 0.3 < found["token_accuracy"] < 1
        return
    assert found["entity_f1"] == f1_of_pipeline(pipe, lines, entities)
    assert 0.05 < found["entity_f1"] < 1


@pytest.mark.parametrize("family", list(ENCODER))
def test_words_in_their_text_are_scored_there(family, pipe_of, tmp_path):
    pipe = pipe_of(family, "iob2")
    texts = [
        " ".join(row).replace(" (", "(").replace(" ...", "...") for row in rows_of_words(3, 12)
    ]
    lines = [{"text": t, "tokens": t.split(), "tags": ["O"] * len(t.split())} for t in texts]
    lines[1]["tags"] = ["B-x" for _ in lines[1]["tokens"]]
    lines[2]["tags"] = ["B-y", *["O"] * (len(lines[2]["tokens"]) - 1)]
    source = source_of(tmp_path, lines, text="text")
    hits = count = 0
    for line, answer in zip(lines, pipe(texts), strict=True):
        found = {(e["entity_group"], e["start"], e["end"]) for e in answer["one"]}
        true, place = set(), 0
        for word, tag in zip(line["tokens"], line["tags"], strict=True):
            start = line["text"].index(word, place)
            place = start + len(word)
            true |= {(tag[2:], start, place)} if tag != "O" else set()
        hits, count = hits + len(true & found), count + len(true) + len(found)
    assert scores_of(pipe, source, tmp_path)["entity_f1"] == 2 * hits / count


def test_rows_and_words_without_tags_are_not_scored(pipe_of, tmp_path):
    pipe = pipe_of("wordpiece", "iob2")
    lines = labelled(pipe, rows_of_words(5), "iob2", 6)
    lines = [line for line in lines if line["tokens"]]
    source = source_of(tmp_path, lines)
    before = scores_of(pipe, source, tmp_path)
    without = {"text": "", "tokens": PIECES * 2, "tags": None}
    more = [{"text": " ".join(line["tokens"]), **line} for line in lines]
    unknown = {"tokens": PIECES, "tags": [None] * len(PIECES)}
    more += [without | {"text": " ".join(without["tokens"])}]
    more += [{"text": " ".join(PIECES), **unknown}]
    more += [{"text": "Paris now", "tokens": None, "tags": None}]
    assert scores_of(pipe, source_of(tmp_path, more, text="text"), tmp_path) == before


def test_rows_in_another_scheme_than_the_models_are_read_in_theirs(pipe_of, tmp_path):
    pipe = pipe_of("wordpiece", "bioes")
    lines = labelled(pipe, rows_of_words(7), "bioes", 8)
    expected = scores_of(pipe, source_of(tmp_path, lines), tmp_path)
    letters = {"S": "B", "E": "I"}
    for line in lines:
        line["tags"] = [letters.get(tag[0], tag[0]) + tag[1:] for tag in line["tags"]]
    found = scores_of(pipe, source_of(tmp_path, lines), tmp_path)
    assert found == expected
    assert 0 < found["entity_f1"] < 1


def test_the_command_scores_what_a_saved_model_answers(pipe_of, tmp_path):
    pipe = pipe_of("wordpiece", "iob2")
    lines = labelled(pipe, rows_of_words(9), "iob2", 10)
    path = str(write_rows(tmp_path / "rows.jsonl", lines))
    pipe.model.save_pretrained(tmp_path / "model")
    tokenizer = copy.deepcopy(pipe.tokenizer)
    tokenizer.model_max_length = int(1e30)  # the model's own limit holds in both
    tokenizer.save_pretrained(tmp_path / "model")
    data = {"data_files": {"train": path, "test": path}, "tokens": "tokens", "label": "tags"}
    one = {"head": "token_classification", "data": data}
    recipe = {"encoder": str(tmp_path / "model"), "tasks": {"one": one}, "output_dir": "out"}
    write_recipe(tmp_path / "recipe.yaml", {**recipe, "training": {"use_cpu": True}})
    found = evaluate(tmp_path / "model", tmp_path / "recipe.yaml")["tasks"]["one"]
    assert found["entity_f1"] == f1_of_pipeline(pipe, lines, entities)


def test_plain_tags_are_no_entities_of_a_model(pipe_of, tmp_path):
    pipe = pipe_of("wordpiece", "iob2")
    pipe.model.save_pretrained(tmp_path / "model")
    pipe.tokenizer.save_pretrained(tmp_path / "model")
    lines = [{"tokens": ["a", "b"], "tags": ["x", "O"]}]
    path = str(write_rows(tmp_path / "rows.jsonl", lines))
    data = {"data_files": {"train": path, "test": path}, "tokens": "tokens", "label": "tags"}
    one = {"head": "token_classification", "data": data}
    recipe = {"encoder": str(tmp_path / "model"), "tasks": {"one": one}, "output_dir": "out"}
    write_recipe(tmp_path / "recipe.yaml", recipe)
    with pytest.raises(UserError, match="of scheme None, but the model's are of iob2"):
        evaluate(tmp_path / "model", tmp_path / "recipe.yaml")

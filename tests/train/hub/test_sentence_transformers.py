"""sentence-transformers on a saved Polyhead: the same vectors, and all of it saved again."""

import json

import numpy as np
import pytest
import torch
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.train.adapters import attach_adapters
from polyhead.train.hub import save_folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

TEXTS = ["Book a table for two in Paris!", "go", "The train to New York leaves on Monday, Anna."]
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


def embedding(**options):
    return TaskConfig(head="embedding", **options)


@pytest.fixture
def saved(make_model, tokenizer_of, tmp_path):
    """(tasks, adapters, pooling=) -> pipeline, folder"""

    def save(tasks, adapters=None, **options):
        model = make_model("bert", tasks, **options)
        attach_adapters(model, adapters or {})
        tokenizer, folder = tokenizer_of("wordpiece"), tmp_path / "model"
        save_folder(model.eval(), tokenizer, folder)
        return PolyheadPipeline(model=model, tokenizer=tokenizer, device="cpu"), folder

    return save


def load(folder):
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


def vectors(pipe, task):
    return [answer[task] for answer in pipe(TEXTS, [task])]


class TestEncode:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"pooling": "cls"},
            {"pooling": "max", "normalize": False},
            {"pooling": "last_token"},
            {"projection": 8},
        ],
        ids=str,
    )
    def test_gives_the_only_tasks_vectors(self, options, saved):
        pipe, folder = saved({"near": embedding(**options)})
        model = load(folder)
        np.testing.assert_allclose(model.encode(TEXTS), vectors(pipe, "near"), rtol=0, atol=1e-6)
        assert model.get_embedding_dimension() == options.get("projection", 32)
        assert model.max_seq_length == 64

    def test_reaches_a_tasks_adapter_pooling_and_projection(self, saved):
        tasks = {
            "near": embedding(),
            "topic": embedding(pooling="cls", projection=8),
            "intent": TaskConfig(head="sequence_classification", labels=["a", "b"]),
        }
        pipe, folder = saved(tasks, {"near": LORA, "topic": LORA})
        model = load(folder)
        for task in ("near", "topic"):
            encoded = model.encode(TEXTS, task=task)
            np.testing.assert_allclose(encoded, vectors(pipe, task), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("task", [None, "intent", "query", "nope"])
    def test_raises_without_an_embedding_task_where_there_are_several(self, task, saved):
        intent = TaskConfig(head="sequence_classification", labels=["a", "b"])
        _, folder = saved({"near": embedding(), "topic": embedding(), "intent": intent})
        options = {} if task is None else {"task": task}
        with pytest.raises(ValueError, match="embedding tasks of this model: near, topic"):
            load(folder).encode(TEXTS, **options)

    def test_its_queries_and_documents_are_those_of_the_only_task(self, saved):
        pipe, folder = saved({"near": embedding()})
        model, expected = load(folder), vectors(pipe, "near")
        for encoded in (model.encode_query(TEXTS), model.encode_document(TEXTS)):
            np.testing.assert_allclose(encoded, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("pooling", ["mean", "cls", "mean_last_4"])
    def test_of_a_model_without_embeddings_gives_the_pooled_encoder(self, pooling, saved):
        intent = TaskConfig(head="sequence_classification", labels=["a", "b"])
        pipe, folder = saved({"intent": intent}, pooling=pooling, num_hidden_layers=4)
        plain = embedding(normalize=False)
        pipe.model.add_task("plain", plain)
        model = load(folder)
        np.testing.assert_allclose(model.encode(TEXTS), vectors(pipe, "plain"), rtol=0, atol=1e-5)
        assert model.get_embedding_dimension() == (128 if pooling == "mean_last_4" else 32)


class TestFolder:
    def test_saved_by_sentence_transformers_it_is_the_whole_model(self, saved, tmp_path):
        tasks = {
            "near": embedding(),
            "topic": embedding(projection=8),
            "intent": TaskConfig(head="sequence_classification", labels=["a", "b"]),
        }
        pipe, folder = saved(tasks, {"near": LORA, "intent": LORA})
        load(folder).save_pretrained(str(tmp_path / "again"))
        again = PolyheadModel.from_pretrained(tmp_path / "again")
        before, after = pipe.model.state_dict(), again.state_dict()
        assert sorted(after) == sorted(before)
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert again.config.tasks == pipe.model.config.tasks
        encoded = load(tmp_path / "again").encode(TEXTS, task="topic")
        np.testing.assert_allclose(encoded, vectors(pipe, "topic"), rtol=0, atol=1e-6)

    def test_its_evaluators_run(self, saved):
        pipe, folder = saved({"near": embedding()})
        others = [*TEXTS[1:], TEXTS[0]]
        evaluator = EmbeddingSimilarityEvaluator(TEXTS, others, [0.1, 0.9, 0.3])
        scores = evaluator(load(folder))
        one, two = np.array(vectors(pipe, "near")), np.array([a["near"] for a in pipe(others)])
        ranks = (one * two).sum(1).argsort().argsort() - np.array([0, 2, 1])
        expected = 1 - 6 * (ranks**2).sum() / (3 * 8)  # Spearman of three without ties
        assert scores["spearman_cosine"] == pytest.approx(expected)

    def test_of_a_plain_export_holds_its_own_modules(self, saved, tmp_path):
        from polyhead.train.export.plain import export_hf

        pipe, _ = saved(
            {"near": embedding(), "deep": embedding(pooling="mean_last_4")}, num_hidden_layers=4
        )
        export_hf(pipe.model, pipe.tokenizer, task="near", folder=tmp_path / "near")
        kinds = [m["type"] for m in json.loads((tmp_path / "near/modules.json").read_text())]
        assert [kind.rpartition(".")[2] for kind in kinds] == [
            "Transformer",
            "Pooling",
            "Normalize",
        ]
        export_hf(pipe.model, pipe.tokenizer, task="deep", folder=tmp_path / "deep")
        assert not (tmp_path / "deep/modules.json").exists()

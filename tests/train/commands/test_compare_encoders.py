"""`polyhead compare-encoders`: probes, times, licences, and what is recommended of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from polyhead.modeling import PolyheadModel
from polyhead.train.cli.encoders import _print as print_encoders
from polyhead.train.commands import compare_encoders as comparing
from polyhead.train.commands import probes
from polyhead.train.commands.compare_encoders import (
    NOT_STATED,
    Candidate,
    compare_encoders,
    licence_of,
    recommended,
    scatter,
)
from polyhead.train.commands.probes import probe
from polyhead.train.commands.setup import prepare
from polyhead.train.errors import UserError
from polyhead.train.recipe import load_recipe
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from train_helpers import (
    files_of,
    messages,
    pairs,
    private_cache,  # noqa: F401
    recipe_of,
    run_cli,
    write_recipe,
    write_splits,
)

TIMES = {"latency_ms": 2.0, "texts_per_second": 900.0, "memory_mb": 400.0}


@pytest.fixture
def recipe(tmp_path, encoder_folder):
    """Writes a recipe of some tasks; its encoder is a tiny BERT."""
    write_splits(tmp_path, "messages", messages)
    write_splits(tmp_path, "pairs", pairs)

    def write(tasks: str = "intent near slots", **keys) -> Path:
        usual = recipe_of(tmp_path) | {"output_dir": str(tmp_path / "out")}
        usual |= {"encoder": str(encoder_folder("bert"))} | keys
        usual["tasks"] = {name: usual["tasks"][name] for name in tasks.split()}
        return write_recipe(tmp_path / "recipe.yaml", usual)

    return write


@pytest.fixture
def no_timing(monkeypatch):
    """No process of its own: the times are made up."""
    asked = []

    def timed(recipe, name, length, texts):
        asked.append((name, length, texts))
        return TIMES

    monkeypatch.setattr(comparing, "timed", timed)
    return asked


def candidate(name: str, score: float, latency: float, rows: int = 400) -> Candidate:
    facts = {"parameters": 1, "length": 64, "licence": "mit", **TIMES, "latency_ms": latency}
    scores = {"intent": {"accuracy": score}}
    return Candidate(name, scores=scores, rows={"intent": rows}, **facts)


class TestProbe:
    def test_is_a_logistic_regression_on_pooled_vectors(self, recipe, encoder_folder, tmp_path):
        run = prepare(recipe("intent"))
        scores = probe(run)
        model = PolyheadModel.from_encoder(str(encoder_folder("bert")), {}).eval()

        def vectors(rows):
            with torch.no_grad():
                each = [run.tokenizer(text, return_tensors="pt") for text in rows["text"]]
                return np.concatenate([model.embed(**tokens).numpy() for tokens in each])

        splits = run.sources[0].splits
        train, validation = vectors(splits["train"]), vectors(splits["validation"])
        scaler = StandardScaler().fit(train)
        reference = LogisticRegression(C=1 / probes.PENALTY, tol=1e-8, max_iter=10_000)
        reference.fit(scaler.transform(train), splits["train"]["intent"])
        answers = reference.predict(scaler.transform(validation))
        same = [a == b for a, b in zip(answers, splits["validation"]["intent"], strict=True)]
        assert scores["intent"]["accuracy"] == np.mean(same)
        head = run.model.heads["intent"]
        weights = head.out.weight.detach()
        expected = torch.tensor(reference.coef_, dtype=torch.float32)
        expected = expected[[list(reference.classes_).index(x) for x in head.task.labels]]
        torch.testing.assert_close(weights, expected, atol=2e-3, rtol=0)

    def test_leaves_the_encoder_as_it_is_and_no_hook_behind(self, recipe):
        run = prepare(recipe())
        before = {k: v.clone() for k, v in run.model.encoder.state_dict().items()}
        scores = probe(run)
        assert list(scores) == ["intent", "near", "slots"]
        assert all(torch.equal(v, before[k]) for k, v in run.model.encoder.state_dict().items())
        assert not any(head._forward_pre_hooks for head in run.model.heads.values())

    def test_many_tokens_are_thinned_out(self, recipe, monkeypatch):
        sizes = []
        usual = probes._train_head

        def note(head, read):
            sizes.append(sum(map(len, read.labels)))
            return usual(head, read)

        monkeypatch.setattr(probes, "_train_head", note)
        monkeypatch.setattr(probes, "TOKENS", 24)
        probe(prepare(recipe("slots")))
        assert sizes == [24]

    def test_texts_in_windows_and_choices_are_probed(self, recipe, tmp_path):
        path = recipe("intent", max_length=8)
        long = load_recipe(path, ["tasks.intent.long_texts=windows"])
        assert 0 <= probe(prepare(long))["intent"]["mcc"] + 1 <= 2


class TestRecommendation:
    def test_is_the_fastest_within_the_noise_of_the_best(self):
        best, near, far = (candidate(*of) for of in (("a", 0.8, 9), ("b", 0.79, 3), ("c", 0.7, 1)))
        assert recommended([best, near, far]) is near
        assert best.noise == pytest.approx(math.sqrt(0.8 * 0.2 / 400), rel=0.02)
        assert recommended([best, far]) is best
        few = [candidate("a", 0.8, 9, rows=20), candidate("c", 0.72, 1, rows=20)]
        assert recommended(few) is few[1]

    def test_there_is_none_where_no_score_is_defined(self):
        assert recommended([candidate("a", math.nan, 1), candidate("b", math.nan, 2)]) is None
        assert recommended([candidate("a", 0.5, 1), candidate("b", math.nan, 0.5)]).encoder == "a"

    def test_says_where_another_is_better(self):
        few = candidate("a", 0.8, 9), candidate("b", 0.7, 1)
        lines = comparing._better_at("intent", list(few), few[1])
        assert lines == ["intent: a is better, accuracy 0.8000 against 0.7000"]
        assert comparing._better_at("intent", list(few), few[0]) == []

    def test_the_picture_names_every_candidate(self):
        few = [candidate("a$x$", 0.8, 9), candidate("b", 0.7, 1), candidate("c", math.nan, 1)]
        legend = scatter(few, few[0]).legends[0]
        names = [text.get_text() for text in legend.get_texts()]
        assert names == [r"a\$x\$ (recommended)", "b"]


def test_licences_are_those_of_the_cards(tmp_path):
    def card(name: str, text: str | None) -> str:
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "README.md").write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    assert licence_of(card("a", "---\nlicense: mit\n---\n")) == "mit"
    assert licence_of(card("b", "---\nlicense: [mit, apache-2.0]\n---\n")) == "mit, apache-2.0"
    own = "---\nlicense: other\nlicense_name: our-own\n---\n"
    assert licence_of(card("c", own)) == "our-own"
    for name, text in (("d", None), ("e", "no front"), ("f", "---\nlicense: [\n---\n")):
        assert licence_of(card(name, text)) == NOT_STATED


def test_compares_and_prints(recipe, encoder_folder, no_timing, rendered, tmp_path, capsys):
    one, other = str(encoder_folder("bert")), str(encoder_folder("modernbert"))
    path = recipe("intent near slots words", freeze={"layers": [0]}, retain={"weight": 1.0})
    picture = tmp_path / "encoders.png"
    arguments = ["compare-encoders", path, one, other, "tasks.intent.metrics=[accuracy]"]
    assert run_cli(*arguments, "--json", "--output", picture) == 0
    result = json.loads(capsys.readouterr().out)
    assert {row["encoder"] for row in result["encoders"]} == {one, other}
    macros = [row["macro"] for row in result["encoders"]]
    assert macros == sorted(macros, reverse=True)
    assert result["rows"]["intent"] == {"train": 12, "validation": 4}
    assert list(result["rows"]) == ["intent", "near", "slots"]  # words is a language model
    assert result["recommended"] in (one, other)
    assert picture.read_bytes().startswith(b"\x89PNG")
    names, lengths, texts = zip(*no_timing, strict=True)
    assert (names, lengths) == ((one, other), (64, 64))
    assert len(texts[0]) == 8
    print_encoders(result)
    printed = capsys.readouterr().out
    assert f"1  {result['encoders'][0]['encoder']} (licence: not stated)" in printed
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:4]
        for line in printed.splitlines()
        if "│" in line
    }
    assert [cell.strip() for cell in rows["macro"]] == [f"{value:.4f}" for value in macros]
    assert run_cli(*arguments, "--output", picture) == 2
    assert "type --overwrite" in capsys.readouterr().err


def test_faults_of_all_candidates_are_one_message(recipe, encoder_folder, tmp_path):
    path = recipe("intent")
    good = str(encoder_folder("bert"))
    with pytest.raises(UserError) as error:
        compare_encoders(path, [good, str(tmp_path / "no"), "package:nowhere_at_all/x"])
    assert len(error.value.faults) == 2
    assert "no: " in error.value.faults[0]
    assert "nowhere_at_all is not installed" in error.value.faults[1]
    with pytest.raises(UserError, match="name two or more"):
        compare_encoders(path, [good])
    with pytest.raises(UserError, match="named twice"):
        compare_encoders(path, [good, good])
    with pytest.raises(UserError, match=r"its ending is \.png"):
        compare_encoders(path, [good, "x"], output=tmp_path / "a.svg")
    splits = json.dumps(files_of("messages", "train"))
    with pytest.raises(UserError, match="no validation rows; encoders are compared by them"):
        compare_encoders(path, [good, good + "/"], [f"tasks.intent.data.data_files={splits}"])
    with pytest.raises(UserError, match="different tokenizers cannot be compared"):
        compare_encoders(recipe("words"), [good, good + "/"])


@pytest.mark.slow
def test_time_and_memory_are_measured_in_a_process_of_its_own(recipe, encoder_folder):
    usual = load_recipe(recipe("intent"))
    timed = comparing.timed(
        replace(usual, training={"use_cpu": True}),
        *(str(encoder_folder("bert")), 64, ["book the train", "cancel"] * 20),
    )
    assert set(timed) == set(TIMES)
    assert 0 < timed["latency_ms"] < 1000
    assert timed["texts_per_second"] > 1
    assert 100 < timed["memory_mb"] < 4000

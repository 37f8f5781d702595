"""Any text is answered; its spans are places in it; any other object is refused."""

import pytest
import torch
from conftest import shake_heads
from fuzzing import PIECES, TEXTS, TREES, examples, in_time
from hypothesis import given
from hypothesis import strategies as st
from markdown_checks import check_markdown
from polyhead.modeling import PolyheadModel, PolyheadPipeline, TaskConfig
from polyhead.modeling.inputs import read_inputs
from polyhead.train import escape

pytestmark = pytest.mark.fuzz

FAMILIES = {"wordpiece": "bert", "bpe": "roberta", "unigram": "xlm-roberta"}
TASKS = {
    "intent": TaskConfig(head="sequence_classification", labels=["a", "b"]),
    "words": TaskConfig(head="token_classification", labels=["N", "V"]),
    "spans": TaskConfig(head="token_classification", labels=["O", "B-x", "I-x", "B-y", "I-y"]),
    "same": TaskConfig(head="sequence_classification", labels=["no", "yes"], pair=True),
    "vector": TaskConfig(head="embedding"),
}


@pytest.fixture(scope="module")
def pipes(encoder_folder, tokenizer_of):
    made = {}
    for family, kind in FAMILIES.items():
        model = PolyheadModel.from_encoder(str(encoder_folder(kind)), tasks=TASKS)
        shake_heads(model)
        made[family] = PolyheadPipeline(
            model=model, tokenizer=tokenizer_of(family), device="cpu", compute="exact"
        )
    return made


def check_spans(text, spans):
    position = 0
    for span in spans:
        assert position <= span["start"] < span["end"] <= len(text), (text, spans)
        assert text[span["start"] : span["end"]] == span["word"]
        assert 0 <= span["score"] <= 1
        position = span["end"]


@examples(250)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4), family=st.sampled_from(sorted(FAMILIES)))
def test_spans_are_places_in_the_text(pipes, texts, family):
    with in_time():
        answers = pipes[family](texts)
    for text, answer in zip(texts, answers, strict=True):
        check_spans(text, answer["words"])
        check_spans(text, answer["spans"])
        assert {span["entity_group"] for span in answer["spans"]} <= {"x", "y"}
        covered = "".join(span["word"] for span in answer["words"])
        assert covered == "".join(char for char in covered if not char.isspace())
        assert torch.isfinite(torch.from_numpy(answer["vector"])).all()
        assert answer["intent"]["label"] in ("a", "b")


@examples(60)
@given(texts=st.lists(TEXTS, min_size=2, max_size=4), family=st.sampled_from(sorted(FAMILIES)))
def test_a_text_alone_is_a_text_among_others(pipes, texts, family):
    with in_time():
        together, alone = pipes[family](texts), [pipes[family](text) for text in texts]
    for one, other in zip(together, alone, strict=True):
        for name in ("words", "spans"):
            places = [
                [(s["start"], s["end"], s["entity_group"]) for s in answer[name]]
                for answer in (one, other)
            ]
            assert places[0] == places[1]
        assert one["intent"]["score"] == pytest.approx(other["intent"]["score"], abs=1e-5)


@examples(30)
@given(
    pieces=st.lists(st.sampled_from(PIECES), min_size=100, max_size=300),
    family=st.sampled_from(sorted(FAMILIES)),
)
def test_long_texts_are_read_to_their_end(pipes, pieces, family):
    text = " ".join(pieces)
    with in_time():
        check_spans(text, pipes[family](text, tasks=["words"])["words"])


@examples(60)
@given(one=TEXTS, other=TEXTS, family=st.sampled_from(sorted(FAMILIES)))
def test_any_pair_is_answered(pipes, one, other, family):
    with in_time():
        found = pipes[family]((one, other))["same"]
    assert found["label"] in ("no", "yes")
    assert found == pipes[family]({"text": one, "text_pair": other})["same"]


@examples(600)
@given(value=TREES | st.binary() | st.sets(st.text()) | st.tuples(TREES, TREES) | st.lists(TEXTS))
def test_any_object_is_texts_or_refused(value):
    with in_time():
        try:
            texts, single = read_inputs(value)
        except ValueError as error:
            assert len(str(error)) < 400
            return
    assert all(isinstance(text, (str, tuple)) for text in texts)
    assert len(texts) == (1 if single else len(value))
    assert not isinstance(value, (bytes, set))


@examples(1500)
@given(text=TEXTS)
def test_any_text_stays_text_on_pages(text):
    check_markdown(text)
    assert escape.in_html(text).encode() or not text
    assert "\x1b" not in escape.lines(text)

"""Entities of any tags are seqeval's in strict mode; tags of any entities are theirs again."""

import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from polyhead.modeling.tags import decode_tags, legal_transitions, spans_of, write_tags
from polyhead.train.evaluation.entity_scores import entity_scores
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

pytestmark = pytest.mark.fuzz

SCHEMES = {"iob1": (IOB1, "BI"), "iob2": (IOB2, "BI"), "bioes": (IOBES, "BIES")}
TAGS = {
    name: ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("x", "y", "x-y"))]
    for name, (_, prefixes) in SCHEMES.items()
}


def tags_of(scheme, **sizes):
    return st.lists(st.sampled_from(TAGS[scheme]), **sizes)


@examples(2000)
@given(data=st.data(), scheme=st.sampled_from(sorted(SCHEMES)))
def test_spans_are_those_of_seqeval(data, scheme):
    tags = data.draw(tags_of(scheme, max_size=9))
    (expected,) = Entities([tags], SCHEMES[scheme][0]).entities
    assert spans_of(tags, scheme) == [(one.tag, one.start, one.end) for one in expected]


@examples(500)
@given(data=st.data(), scheme=st.sampled_from(sorted(SCHEMES)))
def test_scores_are_those_of_seqeval(data, scheme):
    rows = data.draw(
        st.lists(
            st.integers(1, 6).flatmap(
                lambda n: st.tuples(*[tags_of(scheme, min_size=n, max_size=n)] * 2)
            ),
            min_size=1,
            max_size=4,
        )
    )
    found, true = (
        {(i, *span) for i, row in enumerate(rows) for span in spans_of(row[side], scheme)}
        for side in (0, 1)
    )
    scores = entity_scores(found, true)
    *expected, _ = precision_recall_fscore_support(
        [row[1] for row in rows],
        [row[0] for row in rows],
        scheme=SCHEMES[scheme][0],
        average="micro",
        zero_division=0,
    )
    names = ("precision", "recall", "entity_f1")
    assert [scores[name] for name in names] == pytest.approx(expected)


ENTITIES = st.lists(
    st.tuples(st.sampled_from("xy"), st.integers(0, 2), st.integers(1, 3)), max_size=4
)


@examples(1000)
@given(parts=ENTITIES, rest=st.integers(0, 2), scheme=st.sampled_from(sorted(SCHEMES)))
def test_written_tags_read_back(parts, rest, scheme):
    entities, position = [], 0
    for kind, gap, length in parts:
        position += gap
        entities.append((kind, position, position + length))
        position += length
    stretches = [(i, i + 1) for i in range(position + rest)]
    tags = write_tags(entities, stretches, scheme)
    assert spans_of(tags, scheme) == entities


@examples(200)
@given(data=st.data(), scheme=st.sampled_from(sorted(SCHEMES)))
def test_decoded_tags_are_legal(data, scheme):
    import torch

    seed = data.draw(st.integers(0, 2**31))
    labels = TAGS[scheme]
    scores = torch.randn(
        data.draw(st.integers(0, 8)), len(labels), generator=torch.Generator().manual_seed(seed)
    ).log_softmax(-1)
    tags = decode_tags(scores, labels, scheme)
    starts, pairs, ends = legal_transitions(labels, scheme)
    ids = [labels.index(tag) for tag in tags]
    assert len(ids) == len(scores)
    if ids:
        assert starts[ids[0]]
        assert ends[ids[-1]]
        assert all(pairs[a, b] for a, b in zip(ids, ids[1:], strict=False))
        assert sum(spans_of(tags, scheme) != [] for _ in [0]) == any(tag != "O" for tag in tags)

"""What a call of the pipeline may ask for."""

import numpy as np
import pytest
from polyhead.modeling.asked import check_options, chosen_tasks, form_of_all, known_tasks

USUAL = {"batch_tokens": None, "batch_size": None, "top_k": 1, "threshold": None, "document": False}
READS = {"intent": "text", "same": "pair", "slots": "text"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": True}, "top_k is True; it must be at least 1, or None"),
        ({"threshold": 2}, r"threshold is 2; it must lie in \[0, 1\], or be None"),
        ({"document": 1}, "document is 1; it must be True or False"),
    ],
)
def test_options_out_of_their_range(options, message):
    check_options(USUAL)
    with pytest.raises(ValueError, match=message):
        check_options({**USUAL, **options})


def test_all_texts_have_one_form():
    assert form_of_all(["a", "b"]) == "text"
    assert form_of_all([("a", "b")], "pair") == "pair"
    with pytest.raises(ValueError, match="texts and pairs of texts are mixed"):
        form_of_all(["a"], "pair")


def test_tasks_are_those_that_read_what_is_given():
    assert chosen_tasks(READS, "text", None) == ["intent", "slots"]
    assert chosen_tasks(READS, "pair", ["same"]) == ["same"]
    with pytest.raises(ValueError, match="task 'same' reads pairs"):
        chosen_tasks(READS, "text", ["intent", "same"])
    with pytest.raises(ValueError, match="every task of this model reads"):
        chosen_tasks(READS, "choices", None)


def test_names_are_known_and_come_once():
    names = list(READS)
    assert known_tasks(names, np.array(["slots", "intent", "slots"])) == ["slots", "intent"]
    with pytest.raises(ValueError, match=r"give a list: tasks=\['slots'\]"):
        known_tasks(names, "slots")
    with pytest.raises(ValueError, match="tasks is empty"):
        known_tasks(names, [])

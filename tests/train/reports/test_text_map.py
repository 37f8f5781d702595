"""Colours of a map's points."""

import numpy as np
import pytest
from polyhead.train.reports.projection import Projection
from polyhead.train.reports.text_map import map_figure, marks_of


def test_the_most_frequent_labels_come_first_and_a_missing_one_is_said():
    marks = marks_of(["b", "a", None, "b", ""], 5, "label")
    assert marks.names == ["b", "a", "no label"]
    assert marks.groups.tolist() == [0, 1, 2, 0, 2]
    assert marks.shown == ["b", "a", "no label", "b", "no label"]


def test_of_many_labels_twenty_have_a_colour():
    values = [f"l{n}" for n in range(30)] + [f"l{n}" for n in range(20)]
    marks = marks_of(values, 50)
    assert len(marks.names) == len(marks.colours) == 21
    assert marks.names[-1] == "others (10 labels)"
    assert (marks.groups == 20).sum() == 10


@pytest.mark.parametrize("as_text", [False, True])
def test_many_numbers_are_a_scale_and_few_are_labels(as_text):
    numbers = [str(n) if as_text else n for n in range(11)]
    assert marks_of([*numbers, None], 12).numbers.tolist()[:11] == list(range(11))
    assert marks_of(numbers[:10], 10).names == [str(n) for n in range(10)]


def test_the_legend_counts_and_names_are_drawn_as_they_are():
    marks = marks_of(["$x$", "b", "b"], 3, "label")
    points = Projection("pca", np.array([[0.0, 1], [1, 0], [1, 1]]), 0.5)
    figure = map_figure([points, points], marks, "title")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b (2)", r"\$x\$ (1)"]
    assert [axes.get_title() for axes in figure.axes] == ["PCA, 50% of the variance"] * 2

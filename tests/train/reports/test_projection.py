"""Vectors on a plane: PCA equals the eigenvectors, neighbours stay, bad input is refused."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest
from polyhead.train.errors import UserError
from polyhead.train.reports.projection import METHODS, project


@pytest.fixture
def groups() -> np.ndarray:
    """Three groups of 20 vectors."""
    draw = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 16) * 3, 20, axis=0)
    return centres + 0.1 * draw.normal(size=(60, 16))


def test_pca_keeps_the_two_largest_variances(groups):
    shown = project(groups, "pca")
    unit = groups / np.linalg.norm(groups, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(unit.T))[::-1]
    assert shown.points.var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert shown.explained == pytest.approx(values[:2].sum() / values.sum())
    assert re.fullmatch(r"PCA, \d+% of the variance", shown.title)


def test_lengths_do_not_count(groups):
    lengths = np.linspace(1, 9, 60)[:, None]
    assert project(groups * lengths).points == pytest.approx(project(groups).points)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_nearest_point_is_of_the_same_group_each_time(groups, method):
    points = project(groups, method).points
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(1) // 20 == np.arange(60) // 20).all()
    assert np.array_equal(project(groups, method).points, points)


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("width", [1, 2])
def test_few_texts_and_narrow_vectors_have_a_place(method, width):
    vectors = np.array([[1, 0.5], [-1, 0.2], [1, 0.7], [-1, 0.1]])[:, :width]
    points = project(vectors, method).points
    assert points.shape == (4, 2)
    assert np.isfinite(points).all()


def test_umap_is_called_where_it_is_installed(groups, monkeypatch):
    class UMAP:
        def __init__(self, n_neighbors, random_state):
            assert (n_neighbors, random_state) == (15, 7)

        def fit_transform(self, vectors):
            return vectors[:, :2]

    stand_in = ModuleType("umap")
    stand_in.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", stand_in)
    assert project(groups, "umap", seed=7).points.shape == (60, 2)


@pytest.mark.parametrize(
    ("vectors", "method", "message"),
    [
        (np.eye(4), "lda", "method 'lda'; allowed: pca, tsne, umap"),
        (np.zeros((0, 4)), "pca", "0 rows; PCA needs 2 or more"),
        (np.ones((1, 4)), "pca", "1 rows; PCA needs 2 or more"),
        (np.eye(3), "tsne", "3 rows; t-SNE needs 4 or more"),
        (np.ones((5, 4)) * [[1], [2], [3], [4], [5]], "tsne", "all rows have the same vector"),
        ([[1, 0], [0, np.nan], [np.inf, 1]], "pca", "of row 1 is not finite (2 of 3 rows)"),
    ],
)
def test_what_cannot_be_shown_is_refused(vectors, method, message):
    with pytest.raises(UserError, match=re.escape(message)):
        project(vectors, method)


def test_a_missing_package_is_named(groups, monkeypatch):
    assert "umap" in METHODS
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match="pip install umap-learn"):
        project(groups, "umap")

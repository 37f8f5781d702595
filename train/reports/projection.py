"""Vectors on a plane, so that one can look at them: PCA, t-SNE, UMAP.

Vectors are scaled to length 1 before, because embeddings are compared by their cosine. PCA keeps
distances between far groups, t-SNE and UMAP keep who is near to whom. One thread takes 1,000
vectors of 384 numbers in 0.2 s by PCA and in some 10 s by t-SNE.

Shapes: `N` texts, `D` width of a vector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ..errors import UserError

KEPT = 50  # principal components that t-SNE and UMAP work on
NEIGHBOURS = 30  # that t-SNE looks at (its perplexity), where there are three times as many texts
FEWEST = {"pca": 2, "tsne": 4, "umap": 4}  # texts
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class Projection:
    """Where texts lie on a plane.

    Args:
        method: a key of `METHODS`.
        points: (N, 2) float64.
        explained: of PCA, the share of the variance that the plane has; else None.
        heading: a title of another's; default the method's name and what its plane shows.
    """

    method: str
    points: np.ndarray
    explained: float | None = None
    heading: str | None = None

    @property
    def title(self) -> str:
        """What stands over the picture."""
        if self.heading is not None:
            return self.heading
        if self.explained is None:
            return TITLES[self.method]
        return f"{TITLES[self.method]}, {self.explained:.0%} of the variance"


def project(vectors: np.ndarray, method: str = "pca", *, seed: int = 0) -> Projection:
    """Put vectors on a plane; the same ones always on the same places.

    Args:
        vectors: (N, D).
        method: `pca`, `tsne` or `umap`.
        seed: of t-SNE and UMAP.

    Raises:
        UserError: the method is unknown, its package is missing, or there is nothing to show: too
            few vectors, values that are not finite, or all vectors alike.
    """
    if method not in METHODS:
        raise UserError("map", [f"method {method!r}; allowed: {', '.join(METHODS)}"])
    vectors = np.asarray(vectors, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < FEWEST[method]:
        count = len(vectors) if vectors.ndim else 0
        few = f"{count} rows; {TITLES[method]} needs {FEWEST[method]} or more"
        raise UserError("map", [few])
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        fault = f"the vector of row {bad[0]} is not finite ({len(bad)} of {len(vectors)} rows)"
        raise UserError("map", [fault])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if np.ptp(unit, axis=0).max() < 1e-9:
        raise UserError("map", ["all rows have the same vector; there is nothing to show"])
    return METHODS[method](unit, seed)


def _pca(unit: np.ndarray, seed: int) -> Projection:
    if unit.shape[1] == 1:
        return Projection("pca", np.column_stack([unit, np.zeros(len(unit))]), 1.0)
    pca = PCA(2, svd_solver="full")
    points = pca.fit_transform(unit)
    return Projection("pca", points, float(pca.explained_variance_ratio_.sum()))


def _reduced(unit: np.ndarray) -> np.ndarray:
    """(N, 50 or less) principal components: neighbours stay, and are found sooner."""
    width = min(KEPT, *unit.shape)
    return PCA(width, svd_solver="full").fit_transform(unit)


def _tsne(unit: np.ndarray, seed: int) -> Projection:
    perplexity = min(NEIGHBOURS, (len(unit) - 1) / 3)
    start: Any = np.random.default_rng(seed).normal(scale=1e-4, size=(len(unit), 2))
    reduced = _reduced(unit)
    start[:, : reduced.shape[1]] += 1e-2 * reduced[:, :2] / np.abs(reduced[:, 0]).max()
    tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
    return Projection("tsne", tsne.fit_transform(reduced).astype(np.float64))


def _umap(unit: np.ndarray, seed: int) -> Projection:
    try:
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        fault = "method 'umap' needs the package umap-learn; type: pip install umap-learn"
        raise UserError("map", [fault]) from error
    umap = UMAP(n_neighbors=min(15, len(unit) - 1), random_state=seed)
    return Projection("umap", np.asarray(umap.fit_transform(_reduced(unit)), dtype=np.float64))


METHODS: dict[str, Callable[[np.ndarray, int], Projection]] = {
    "pca": _pca,
    "tsne": _tsne,
    "umap": _umap,
}

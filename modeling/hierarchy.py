# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Labels that are paths of a tree, `a/b/c`: the score of a node is the sum of its leaves'.

A head gives logits of the leaves. The answer is found from the root down, at each node the child
with the largest sum: half of the probability on ten kinds of shoes is shoes, though one kind of
shirt may be likelier than each of them.

Shapes: `N` rows, `L` leaves, `D` levels.
"""

from typing import Any

import torch
from torch import Tensor

SEPARATOR = "/"


def nodes_of(label: str) -> list[str]:
    """A path and those that it lies under, from the root: `a`, `a/b`, `a/b/c`."""
    parts = label.split(SEPARATOR)
    return [SEPARATOR.join(parts[:end]) for end in range(1, len(parts) + 1)]


def leaves_under(node: str, labels: list[str]) -> list[str]:
    """The labels that lie under a node."""
    return [label for label in labels if label.startswith(node + SEPARATOR)]


def check_paths(labels: list[str]) -> None:
    """Raise ValueError unless all labels are leaves of one tree."""
    for label in labels:
        if not all(part.strip() for part in label.split(SEPARATOR)):
            raise ValueError(f"hierarchy: label {label!r} has an empty part; write a/b/c")
    inner = {node for label in labels for node in nodes_of(label)[:-1]}
    if both := [label for label in labels if label in inner]:
        under = leaves_under(both[0], labels)[0]
        raise ValueError(f"hierarchy: label {both[0]!r} is no leaf, {under!r} lies under it")


def tree_levels(labels: list[str]) -> Tensor:
    """(D, L): the number of each leaf's node at each level; a short path stays at its leaf."""
    paths = [nodes_of(label) for label in labels]
    levels = []
    for depth in range(max(map(len, paths))):
        nodes = [path[min(depth, len(path) - 1)] for path in paths]
        numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
        levels.append([numbers[node] for node in nodes])
    return torch.tensor(levels)


def node_scores(values: Tensor, levels: Tensor) -> Tensor:
    """(N, L) logits -> (D, N, L), the sum of the probabilities under each leaf's node."""
    chances = values.float().softmax(-1)
    return torch.stack(
        [torch.zeros_like(chances).index_add_(1, level, chances)[:, level] for level in levels]
    )


def best_leaves(values: Tensor, labels: list[str]) -> Tensor:
    """(N, L) logits -> (N,), the leaf that is reached from the root by the best child each time."""
    levels = tree_levels(labels).to(values.device)
    allowed = torch.ones(values.shape, dtype=torch.bool, device=values.device)
    for level, scores in zip(levels, node_scores(values, levels), strict=True):
        node = level[scores.masked_fill(~allowed, -1).argmax(-1)]
        allowed &= level == node[:, None]
    return allowed.int().argmax(-1)


def decode_tree(values: Tensor, labels: list[str], top_k: int | None) -> Any:
    """(L,) logits of one text -> the best leaf and its probability, with the nodes above it.

    Args:
        values: (L,).
        labels: the leaves.
        top_k: how many, the best branch first; None for all.

    Returns:
        `{"label", "score", "path"}`, where `path` has the label and score of each node from the
        root's child to the one above the leaf; a list of them unless `top_k` is 1.
    """
    levels = tree_levels(labels)
    scores = node_scores(values[None], levels)[:, 0]
    best = int(best_leaves(values[None], labels))

    def branch(leaf: int) -> tuple:
        order = [(-float(scores[d, leaf]), int(levels[d, leaf])) for d in range(len(levels))]
        return (leaf != best, *order)

    ranked = []
    for leaf in [best] if top_k == 1 else sorted(range(len(labels)), key=branch)[:top_k]:
        nodes = nodes_of(labels[leaf])
        above = enumerate(nodes[:-1])
        path = [{"label": node, "score": float(scores[depth, leaf])} for depth, node in above]
        ranked.append({"label": nodes[-1], "score": float(scores[-1, leaf]), "path": path})
    return ranked[0] if top_k == 1 else ranked

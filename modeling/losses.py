# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Losses over groups of embeddings, and `LOSSES`, the table of them.

Each is a sum over groups; the caller divides by the count. A sum, not a mean: the normaliser is the
number of labelled groups in the whole optimizer step, which only the trainer knows.

Shapes: `G` groups of `g` texts (pairs, triplets, single texts), `D` embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import isfunction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import TaskOptions, check_option_names
from .tables import Table


def cosine_mse(groups: Tensor, scores: Tensor) -> Tensor:
    """Sum over pairs of (cos(a, b) - score)^2.

    Args:
        groups: (G, 2, D).
        scores: (G,), in [-1, 1].

    The regression objective of SBERT (arXiv:1908.10084, section 3).
    """
    cosines = F.cosine_similarity(groups[:, 0], groups[:, 1])  # (G,)
    return F.mse_loss(cosines, scores, reduction="sum")


def cosent(groups: Tensor, scores: Tensor, scale: float = 20.0) -> Tensor:
    """G * log(1 + sum over (i, j) with score_i < score_j of exp(scale * (cos_i - cos_j))).

    Args:
        groups: (G, 2, D).
        scores: (G,), any range: only their order counts.
        scale: inverse temperature.

    CoSENT, J. Su 2022 (https://kexue.fm/archives/8847): a ranking loss over all pairs of pairs.
    """
    cosines = F.cosine_similarity(groups[:, 0], groups[:, 1])  # (G,)
    return _ranked(cosines * scale, scores)


def angle(groups: Tensor, scores: Tensor, scale: float = 20.0) -> Tensor:
    """CoSENT over the angle of two embeddings in complex space instead of their cosine.

    Args:
        groups: (G, 2, D), D even: the first half of an embedding is its real part.
        scores: (G,), any range: only their order counts.
        scale: inverse temperature.

    AnglE (arXiv:2309.12871, section 3.3): |sum of Re + Im of a conj(b)| at length 1, which does not
    saturate where the cosine does.
    """
    a, b = F.normalize(groups, dim=-1).unbind(1)  # (G, D)
    (a_real, a_imaginary), (b_real, b_imaginary) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    sines = a_imaginary * b_real - a_real * b_imaginary
    similarities = ((a * b).sum(-1) + sines.sum(-1)).abs()
    return _ranked(similarities * scale, scores)


def _ranked(similarities: Tensor, scores: Tensor) -> Tensor:
    """G * log(1 + sum of exp(s_i - s_j) over pairs that the scores put the other way round)."""
    differences = similarities[:, None] - similarities[None, :]  # (G, G)
    wrong_if_positive = scores[:, None] < scores[None, :]
    terms = differences.masked_fill(~wrong_if_positive, float("-inf")).flatten()
    loss = torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)
    return loss * len(similarities)


def contrastive(
    groups: Tensor,
    temperature: float,
    *,
    symmetric: bool = False,
    false_negative_margin: float | None = None,
) -> Tensor:
    """Sum over anchors of the cross-entropy of their own positive among all texts of the batch.

    Args:
        groups: (G, 2 or more, D): anchor, positive, then hard negatives. Every positive and every
            hard negative of the batch is a candidate for every anchor.
        temperature: divides the cosines.
        symmetric: the mean of this and of the cross-entropy of each positive's own anchor among
            all anchors (CLIP, arXiv:2103.00020).
        false_negative_margin: candidates that are nearer to an anchor than its own positive by
            more than this cosine are left out: most often they are as right as the positive
            (arXiv:2407.15831, section 3.2, with the model itself as the judge).

    InfoNCE (arXiv:1807.03748) with in-batch negatives (arXiv:1705.00652).
    """
    unit = F.normalize(groups, dim=-1)
    candidates = unit[:, 1:].transpose(0, 1).flatten(0, 1)  # positives first: (G * (g - 1), D)
    cosines = unit[:, 0] @ candidates.T  # (G, G * (g - 1))
    positives = torch.arange(len(groups), device=groups.device)
    loss = _choose(cosines, positives, temperature, false_negative_margin)
    if symmetric:
        back = _choose(cosines[:, : len(groups)].T, positives, temperature, false_negative_margin)
        loss = (loss + back) / 2
    return loss


def _choose(cosines: Tensor, targets: Tensor, temperature: float, margin: float | None) -> Tensor:
    """Summed cross-entropy of column `targets[i]` in row i, less columns above it by `margin`."""
    if margin is not None:
        limit = cosines.detach().gather(1, targets[:, None]) + margin
        cosines = cosines.masked_fill(cosines.detach() > limit, float("-inf"))
    return F.cross_entropy(cosines / temperature, targets, reduction="sum")


def margin_mse(groups: Tensor, margins: Tensor) -> Tensor:
    """Sum over triplets of (a . p - a . n - margin)^2: a teacher's margins, distilled.

    Args:
        groups: (G, 3, D): anchor, positive, negative.
        margins: (G,): how much higher the teacher scores the positive than the negative.

    arXiv:2010.02666.
    """
    anchor, positive, negative = groups.unbind(1)  # (G, D)
    return F.mse_loss(((positive - negative) * anchor).sum(-1), margins, reduction="sum")


def triplet(groups: Tensor, margin: float) -> Tensor:
    """Sum over triplets of max(0, |a - p| - |a - n| + margin), over all hard negatives n.

    Args:
        groups: (G, 3 or more, D): anchor, positive, then hard negatives.
        margin: how much further from the anchor a negative must be; embeddings of length 1 are at
            most 2 apart.

    arXiv:1503.03832, with distances instead of their squares.
    """
    anchor, positive = groups[:, :1], groups[:, 1:2]
    near = torch.linalg.vector_norm(anchor - positive, dim=-1)  # (G, 1)
    far = torch.linalg.vector_norm(anchor - groups[:, 2:], dim=-1)  # (G, g - 2)
    return F.relu(near - far + margin).mean(1).sum()


def mse(texts: Tensor, vectors: Tensor) -> Tensor:
    """Sum over texts of the mean squared difference to a teacher's vectors.

    Args:
        texts: (G, 1, D).
        vectors: (G, D): of the teacher.

    arXiv:2004.09813.
    """
    return (texts.squeeze(1) - vectors).square().mean(1).sum()


@dataclass(frozen=True, kw_only=True)
class EmbeddingLoss:
    """One loss of embedding tasks: a row of `LOSSES`.

    Args:
        function: from (G, g, D) groups and, unless `label` is None, their (G,) scores or (G, D)
            vectors to the sum of the loss over the groups, a scalar; `options` by keyword.
        group: fewest and most texts in a group; None for any number.
        label: of each group: a number, a vector (of single texts) or none.
        in_batch: compares the groups of a batch with each other, so that it needs them all at once.
        reads_lengths: reads more than directions: embeddings of length 1 that are cut (matryoshka)
            are scaled to it again.
        halves: reads an embedding as two halves, so that its width is even.
        score_range: of scores that the cosine is to equal; None where it learns their order alone.
        options: of the task, that it reads.
    """

    function: Callable[..., Tensor]
    group: tuple[int, int | None] = (2, 2)
    label: Literal["score", "vector"] | None = "score"
    in_batch: bool = False
    reads_lengths: bool = False
    halves: bool = False
    score_range: tuple[float, float] | None = None
    options: frozenset[str] = frozenset()

    @property
    def groups(self) -> str:
        """What it reads, in words."""
        least, most = self.group
        words = {(1, 1): "single texts", (2, 2): "pairs", (3, 3): "triplets"}
        upper = "or more" if most is None else f"to {most}"
        return words.get((least, most or 0), f"groups of {least} {upper}")

    def sum(self, groups: Tensor, labels: Tensor, task: TaskOptions) -> Tensor:
        """The loss of (G, g, D) groups with their labels, (G,) or (G, D), summed; a scalar."""
        options = {name: getattr(task, name) for name in self.options}
        arguments = (groups,) if self.label is None else (groups, labels)
        return self.function(*arguments, **options)


LOSSES: Table[EmbeddingLoss] = Table(
    "loss",
    {
        "contrastive": EmbeddingLoss(
            function=contrastive,
            group=(2, None),
            label=None,
            in_batch=True,
            options=frozenset(("temperature", "symmetric", "false_negative_margin")),
        ),
        "triplet": EmbeddingLoss(
            function=triplet,
            group=(3, None),
            label=None,
            reads_lengths=True,
            options=frozenset(("margin",)),
        ),
        "cosent": EmbeddingLoss(function=cosent, in_batch=True),
        "angle": EmbeddingLoss(function=angle, in_batch=True, halves=True),
        "cosine_mse": EmbeddingLoss(function=cosine_mse, score_range=(-1.0, 1.0)),
        "margin_mse": EmbeddingLoss(function=margin_mse, group=(3, 3), reads_lengths=True),
        "mse": EmbeddingLoss(function=mse, group=(1, 1), label="vector"),
    },
)


def register_loss(name: str, loss: EmbeddingLoss) -> None:
    """Add a loss that embedding tasks can name.

    Args:
        name: for the task's `loss`.
        loss: its row. The file of its function travels with models that are trained with it.

    Raises:
        ValueError: `loss` is no `EmbeddingLoss` of a plain function; the name is taken or has other
            characters than lower-case letters, digits and _; `options` names what is no option.
    """
    if not isinstance(loss, EmbeddingLoss) or not isfunction(loss.function):
        raise ValueError(
            f"loss {name!r} is {loss!r}; give an EmbeddingLoss(function=...) of a function"
        )
    check_option_names(f"loss {name!r}", loss.options)
    LOSSES.add(name, loss, loss.function)

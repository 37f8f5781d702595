# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""Losses over groups of embeddings. Each is a sum over groups; the caller divides by the count.

A sum, not a mean: the normaliser is the number of labelled groups in the whole optimizer step,
which only the trainer knows. Shapes: `G` groups (pairs, or triplets), `D` embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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

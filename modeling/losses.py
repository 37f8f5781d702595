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
    cosines = F.cosine_similarity(groups[:, 0], groups[:, 1]) * scale  # (G,)
    differences = cosines[:, None] - cosines[None, :]  # (G, G)
    wrong_if_positive = scores[:, None] < scores[None, :]
    terms = differences.masked_fill(~wrong_if_positive, float("-inf")).flatten()
    loss = torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)
    return loss * len(groups)


def contrastive(groups: Tensor, temperature: float) -> Tensor:
    """Sum over anchors of the cross-entropy of their own positive among all texts of the batch.

    Args:
        groups: (G, 2 or more, D): anchor, positive, then hard negatives. Every positive and every
            hard negative of the batch is a candidate for every anchor.
        temperature: divides the cosines.

    InfoNCE (arXiv:1807.03748) with in-batch negatives (arXiv:1705.00652).
    """
    unit = F.normalize(groups, dim=-1)
    candidates = unit[:, 1:].transpose(0, 1).flatten(0, 1)  # positives first: (G * (g - 1), D)
    scores = unit[:, 0] @ candidates.T / temperature  # (G, G * (g - 1))
    own = torch.arange(len(groups), device=groups.device)
    return F.cross_entropy(scores, own, reduction="sum")

"""Which rows stand in a batch, and in what form the model gets them."""

from .collator import MultiTaskCollator
from .sampler import MultiTaskBatchSampler, make_sampler

__all__ = ["MultiTaskBatchSampler", "MultiTaskCollator", "make_sampler"]

"""Which rows stand in a batch, and in what form the model gets them."""

from .collator import MultiTaskCollator
from .sampler import MultiTaskBatchSampler, make_sampler
from .strategies import register_strategy

__all__ = ["MultiTaskBatchSampler", "MultiTaskCollator", "make_sampler", "register_strategy"]

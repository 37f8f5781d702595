"""Rows of a task: read, checked, their labels found, tokenized."""

from .dataset import MultiTaskDataset
from .loading import Source, load_sources
from .tokenization import tokenize

__all__ = ["MultiTaskDataset", "Source", "load_sources", "tokenize"]

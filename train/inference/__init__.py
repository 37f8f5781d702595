"""Models in use: saved or exported, over texts, whole files, and MTEB."""

from .exported import ExportedModel, load_any
from .load import load_model

__all__ = ["ExportedModel", "load_any", "load_model"]

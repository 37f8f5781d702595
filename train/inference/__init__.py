"""Models in use: saved or exported, over texts, tables, whole files, and MTEB."""

from .exported import ExportedModel, load_any
from .load import load_model
from .predictor import PolyheadPredictor

__all__ = ["ExportedModel", "PolyheadPredictor", "load_any", "load_model"]

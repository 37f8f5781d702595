"""A model in other forms: a plain transformers model, a graph, a graph in int8."""

from .graph import export_graph
from .plain import export_hf

__all__ = ["export_graph", "export_hf"]

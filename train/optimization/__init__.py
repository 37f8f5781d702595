"""What of a model trains, how fast, and from when on."""

from .freezing import apply_freeze
from .parameter_groups import optimizer_groups, parameter_table

__all__ = ["apply_freeze", "optimizer_groups", "parameter_table"]

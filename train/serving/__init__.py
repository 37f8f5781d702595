"""A model behind HTTP: requests of any tasks share encoder passes; `polyhead serve`."""

from .app import create_app
from .settings import Settings

__all__ = ["Settings", "create_app"]

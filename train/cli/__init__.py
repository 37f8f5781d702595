"""The `polyhead` command: its arguments, and what it prints."""

from .app import main

__all__ = ["main"]

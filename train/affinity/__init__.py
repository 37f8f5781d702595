"""Should these tasks share a model? What a short run says, and what trained apart does."""

from .measure import affinity

__all__ = ["affinity"]

"""`polyhead.train.mteb.PolyheadEncoder`, the public name of `inference/mteb.py`."""

from .inference.mteb import PolyheadEncoder

__all__ = ["PolyheadEncoder"]

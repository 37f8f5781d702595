"""Configuration, model and pipeline: the part of Polyhead that travels with every saved model."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_polyhead import PolyheadConfig, TaskConfig
from .modeling_polyhead import PolyheadModel, PolyheadOutput
from .pipeline_polyhead import PolyheadPipeline
from .views import PolyheadForSequenceClassification, PolyheadForTokenClassification

AutoConfig.register(PolyheadConfig.model_type, PolyheadConfig, exist_ok=True)
AutoModel.register(PolyheadConfig, PolyheadModel, exist_ok=True)
AutoModelForSequenceClassification.register(
    PolyheadConfig, PolyheadForSequenceClassification, exist_ok=True
)
AutoModelForTokenClassification.register(
    PolyheadConfig, PolyheadForTokenClassification, exist_ok=True
)

__all__ = [
    "PolyheadConfig",
    "PolyheadForSequenceClassification",
    "PolyheadForTokenClassification",
    "PolyheadModel",
    "PolyheadOutput",
    "PolyheadPipeline",
    "TaskConfig",
]

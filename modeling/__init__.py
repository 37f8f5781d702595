"""Configuration, model and pipeline: the part of Polyhead that travels with every saved model."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .base_head import Head
from .configuration_polyhead import PolyheadConfig
from .heads import register_head
from .losses import EmbeddingLoss, register_loss
from .modeling_polyhead import PolyheadModel, PolyheadOutput
from .options import HeadTask, TaskOptions
from .pipeline_polyhead import PolyheadPipeline
from .pooling import register_pooling
from .task_config import TaskConfig
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
    "EmbeddingLoss",
    "Head",
    "HeadTask",
    "PolyheadConfig",
    "PolyheadForSequenceClassification",
    "PolyheadForTokenClassification",
    "PolyheadModel",
    "PolyheadOutput",
    "PolyheadPipeline",
    "TaskConfig",
    "TaskOptions",
    "register_head",
    "register_loss",
    "register_pooling",
]

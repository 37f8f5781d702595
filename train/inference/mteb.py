"""An embedding task of a Polyhead in MTEB's evaluation (arXiv:2210.07316), through its protocol.

    import mteb
    from polyhead.train.mteb import PolyheadEncoder

    mteb.evaluate(PolyheadEncoder("runs/mine/model", task="similarity"), tasks=[...])

Needs the extra `mteb`.
"""

from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType

from ...modeling.pipeline_polyhead import PolyheadPipeline
from .exported import ExportedModel, load_any


class PolyheadEncoder(AbsEncoder):
    """What MTEB calls.

    Args:
        model_name: folder or Hub id of a Polyhead, or folder of an exported one.
        revision: not used for folders; kept in the results.
        device: where the model runs.
        task: name of the embedding task; may be left out where there is one only.

    Raises:
        ValueError: there is no such embedding task, or several and none is named.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        task: str | None = None,
        **_: Any,
    ) -> None:
        model, tokenizer = load_any(model_name)
        self.task = model.config.embedding_task(task)
        where: Any = -1 if isinstance(model, ExportedModel) else device
        parts: Any = {"model": model, "tokenizer": tokenizer, "device": where}
        self.pipeline = PolyheadPipeline(**parts)
        about = {"name": f"polyhead/{self.task}", "revision": revision or "local"}
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={**about, "loader": type(self)})

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors (texts, D) of batches of texts.

        Args:
            inputs: batches with `text`.
            task_metadata: metadata of MTEB's task; not used.
            hf_split: its split; not used.
            hf_subset: its subset; not used.
            prompt_type: documents get the task's second prompt, all else its first.
            kwargs: `batch_size`; others are not used.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        answers: Any = self.pipeline(
            texts,
            [self.task],
            batch_size=kwargs.get("batch_size"),
            document=prompt_type == PromptType.document,
        )
        return np.stack([answer[self.task] for answer in answers])

"""Norms of the gradient by layer, every so many steps: whether it vanishes on its way down.

It reads the gradients that the optimizer is about to use: some 3 % of a step each time.
"""

import torch
from accelerate import Accelerator

from ...modeling.modeling_polyhead import PolyheadModel
from ..optimization.model_parts import model_parts

EVERY = 16  # optimizer steps


class LayerNorms:
    """Norms of the gradients of the encoder's embeddings, layers, and what lies above them.

    Args:
        model: the model, not wrapped; its weights are whole on this rank.
        every: optimizer steps from one measurement to the next; 0 for never.
    """

    def __init__(self, model: PolyheadModel, every: int) -> None:
        self.every = every
        self.parts = {}
        if every:
            self.parts = {
                part.title.replace(" ", "_"): list(part.weights.values())
                for part in model_parts(model)
                if part.of_encoder
            }
        self.values: dict[str, list[torch.Tensor]] = {}

    def take(self, step: int, accelerator: Accelerator) -> None:
        """After the last backward pass of a step, before gradients are clipped."""
        if not self.every or step % self.every:
            return
        scaler = accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        for name, weights in self.parts.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            if gradients:
                norms = torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])
                self.values.setdefault(name, []).append(norms.norm() / scale)

    def log(self) -> dict[str, float]:
        """`gradient_embeddings`, `gradient_layer_0`, ...: means since the last log."""
        values = {f"gradient_{n}": torch.stack(v).mean().item() for n, v in self.values.items()}
        self.values = {}
        return values

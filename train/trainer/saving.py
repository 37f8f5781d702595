"""What the Trainer saves, loads and pushes: the folder that users load."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from transformers.trainer_utils import HubStrategy

from ...modeling.adapters import load_adapter
from ...modeling.modeling_polyhead import PolyheadModel
from ..hub.folder import save_folder
from ..hub.push import HUB_ERRORS, push
from .checkpoints import AtomicCheckpoints
from .fsdp import unsharded_class

logger = logging.getLogger(__name__)


class FolderCheckpoints(AtomicCheckpoints):
    """A Trainer whose checkpoints are the folder that users load, on the Hub too."""

    @property
    def model_for_tasks(self) -> PolyheadModel:
        """The model without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The encoder and heads as HF loads them, then the adapters beside them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_adapters(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_adapters(str(self.state.best_model_checkpoint))

    def _load_adapters(self, folder: str) -> None:
        if self.is_fsdp_enabled:  # a sharded checkpoint holds them among the weights
            return
        model = self.model_for_tasks
        for name in model.loaded_adapters:
            load_adapter(model.encoder, name, folder)

    def gathered_state(self) -> dict[str, Tensor] | None:
        """The weights of all ranks, on the first; None where each rank has them whole."""
        state: Any = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        return state

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """A checkpoint is the folder that users load; the trainer's state is added to it."""
        if self.args.should_save:
            with unsharded_class(self.model_for_tasks):
                save_folder(
                    self.model_for_tasks,
                    self.processing_class,  # pyright: ignore[reportArgumentType]
                    output_dir or str(self.args.output_dir),
                    state_dict=state_dict,
                )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **_: Any,
    ) -> Any:
        """Upload the folder that users load, as it is now; what `push` gives, on the first rank.

        Args:
            commit_message: commit message.
            blocking: not used; it returns when the commit is made.
            token: instead of `args.hub_token`.
            revision: branch instead of `args.hub_revision`.
            private: instead of `args.hub_private_repo`, for a repository that is made.
        """
        state = self.gathered_state()  # by all ranks
        if not self.is_world_process_zero():
            return None
        with TemporaryDirectory() as folder:
            self._save(folder, state)
            return self.push_folder(
                folder, message=commit_message, token=token, revision=revision, private=private
            )

    def push_folder(
        self,
        folder: str | Path,
        *,
        message: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> dict[str, Any]:
        """`hub.push` of a folder to the repository that the arguments name."""
        args = self.args
        return push(
            folder,
            self.hub_model_id or args.hub_model_id or Path(str(args.output_dir)).name,
            private=args.hub_private_repo if private is None else private,
            revision=revision or args.hub_revision,
            message=message or "End of training",
            token=token or args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """After each save; a Hub that does not answer stops no training: the next save tries."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        try:
            message = f"Training in progress, step {self.state.global_step}"
            self.push_folder(checkpoint_folder, message=message)
        except HUB_ERRORS as error:
            logger.warning(f"step {self.state.global_step} was not pushed: {error}")

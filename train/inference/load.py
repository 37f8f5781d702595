"""A saved Polyhead, from a folder or the Hub."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.windows import window_length
from ..errors import UserError


def load_model(path: str | Path) -> tuple[PolyheadModel, PreTrainedTokenizerBase]:
    """A saved Polyhead and its tokenizer, from a folder or the Hub.

    Raises:
        UserError: there is no Polyhead at `path`.
    """
    if (Path(path) / "export.json").is_file():
        raise UserError(str(path), ["is an exported model; give the one it was exported from"])
    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != PolyheadConfig.model_type:
            raise UserError(str(path), [f"is a {config.model_type} model, not a Polyhead"])
        model = PolyheadModel.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.model_max_length = window_length(tokenizer, model.usable_length)
        return model, tokenizer
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        here = "" if Path(path).is_dir() else f"there is no folder {path}, and as a Hub id: "
        raise UserError(str(path), [f"no model can be loaded: {here}{lines[0]}"]) from error

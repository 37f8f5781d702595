"""A saved Polyhead, from a folder or the Hub."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...modeling.checks import check_tokenizer
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
        kind = PolyheadConfig.get_config_dict(path)[0].get("model_type")
        if kind != PolyheadConfig.model_type:
            raise UserError(str(path), [f"is a {kind} model, not a Polyhead"])
        model = PolyheadModel.from_pretrained(path)
        tokenizer = load_tokenizer(path)
        tokenizer.model_max_length = window_length(tokenizer, model.usable_length)
        return model, tokenizer
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        here = "" if Path(path).is_dir() else f"there is no folder {path}, and as a Hub id: "
        raise UserError(str(path), [f"no model can be loaded: {here}{lines[0]}"]) from error


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model.

    Raises:
        UserError: there is none, or none that knows words.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        check_tokenizer(tokenizer)
    except (OSError, ValueError) as error:
        fault = (
            f"the tokenizer cannot be loaded ({str(error).strip().splitlines()[0]}); copy or "
            "download the folder again, or save it there by tokenizer.save_pretrained(folder)"
        )
        raise UserError(str(path), [fault]) from error
    return tokenizer

"""A saved Polyhead, from a folder or the Hub."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...modeling.checks import check_tokenizer
from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel
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
        tokenizer = AutoTokenizer.from_pretrained(path)
        check_tokenizer(tokenizer)
        return model, tokenizer
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        here = "" if Path(path).is_dir() else f"there is no folder {path}, and as a Hub id: "
        raise UserError(str(path), [f"no model can be loaded: {here}{lines[0]}"]) from error

"""A saved Polyhead, from a folder or the Hub."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...modeling.checks import check_tokenizer
from ...modeling.configuration_polyhead import PolyheadConfig
from ...modeling.modeling_polyhead import PolyheadModel
from ...modeling.weights import check_tokenizer_files
from ...modeling.windows import window_length
from ..errors import UserError

# What transformers and tokenizers raise of a tokenizer's files that are no tokenizer's.
REFUSALS = (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError)


def load_model(path: str | Path) -> tuple[PolyheadModel, PreTrainedTokenizerBase]:
    """A saved Polyhead and its tokenizer, from a folder or the Hub.

    Raises:
        UserError: there is no Polyhead at `path`.
    """
    if (Path(path) / "export.json").is_file():
        raise UserError(str(path), ["is an exported model; give the one it was exported from"])
    try:
        config, _ = PolyheadConfig.get_config_dict(path)
        kind = config.get("model_type")
        if not config:
            raise UserError(str(path), ["has no config.json: no saved model, or not all of it"])
        if kind != PolyheadConfig.model_type:
            raise UserError(str(path), [f"is a {kind} model, not a Polyhead"])
        model = PolyheadModel.from_pretrained(path)
        tokenizer = load_tokenizer(path, getattr(model.config, "vocab_size", None))
        tokenizer.model_max_length = window_length(tokenizer, model.usable_length)
        return model, tokenizer
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        here = "" if Path(path).is_dir() else f"there is no folder {path}, and as a Hub id: "
        raise UserError(str(path), [f"no model can be loaded: {here}{lines[0]}"]) from error


def load_tokenizer(path: str | Path, rows: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model.

    Args:
        path: the model.
        rows: number of rows of its token embedding.

    Raises:
        UserError: there is none, or none that knows words.
    """
    try:
        if Path(path).is_dir():
            check_tokenizer_files(str(path))
        tokenizer = AutoTokenizer.from_pretrained(path)
        check_tokenizer(tokenizer, rows)
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:300]
        fault = (
            f"the tokenizer cannot be loaded ({reason}); copy or "
            "download the folder again, or save it there by tokenizer.save_pretrained(folder)"
        )
        raise UserError(str(path), [fault]) from error
    return tokenizer

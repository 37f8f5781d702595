"""Requests, as JSON brings them; unknown keys are refused, so that no option is lost in silence."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Pair = tuple[str, str | list[str]]


class Request(BaseModel):
    """Base: nothing is taken for something else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PairItem(Request):
    """A pair with names."""

    text: str
    text_pair: str | list[str] | None = None


Item = Annotated[str | PairItem | list[str | list[str]], Field(union_mode="left_to_right")]


class Options(Request):
    """A question to chosen tasks."""

    texts: list[Item] = Field(
        description="Texts; [text, text] or {text, text_pair} for pair tasks; [text, [text, text]] "
        "for tasks that choose."
    )
    top_k: int | None = Field(1, ge=1, description="How many labels; null for all.")
    threshold: float | None = Field(None, ge=0, le=1, description="Of multi-label tasks.")
    document: bool = Field(False, description="Texts are documents, not queries.")


class PredictRequest(Options):
    """Texts, and the tasks that read them; without names all that read such texts."""

    tasks: list[str] | Literal["auto"] | None = Field(
        None, description='"auto" answers those that the model\'s router finds in each text.'
    )


class OpenAIRequest(Request):
    """OpenAI's request for embeddings; `document` is ours."""

    input: str | list[str]
    model: str | None = Field(None, description="An embedding task; may be left out if one.")
    dimensions: int | None = Field(None, ge=1, description="A width of the task's `matryoshka`.")
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(None, description="Taken, and not used.")
    document: bool = False


class EmbedRequest(Request):
    """text-embeddings-inference's request for embeddings; `task` is ours."""

    inputs: str | list[str]
    task: str | None = None
    normalize: bool | None = Field(None, description="Length 1; null as the task gives them.")
    truncate: Literal[True] | None = Field(None, description="Long texts are always cut.")
    prompt_name: Literal["query", "document"] | None = None
    dimensions: int | None = Field(None, ge=1)


class Sentences(Request):
    """A sentence and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Request):
    """text-embeddings-inference's request for similarities; `task` is ours."""

    inputs: Sentences
    task: str | None = None


class TokenizeRequest(Request):
    """text-embeddings-inference's request for tokens."""

    inputs: str | list[str]
    add_special_tokens: bool = True


class ReloadRequest(Request):
    """A folder to serve from."""

    model: str
    allow_removed: bool = Field(False, description="Tasks that are served now may be missing.")


def text_of(item: Any) -> Any:
    """An item of `texts` as the pipeline reads it."""
    if isinstance(item, PairItem):
        return item.text if item.text_pair is None else (item.text, item.text_pair)
    return tuple(item) if isinstance(item, list) else item


def size_of(item: Any) -> tuple[int, int]:
    """(texts, characters) that the pipeline reads for a text, a pair or a text with choices."""
    if isinstance(item, str):
        return 1, len(item)
    first, *others = item
    second = others[0] if others else ""
    if isinstance(second, str):
        return 1, len(first) + len(second)
    return len(second), sum(len(first) + len(one) for one in second)

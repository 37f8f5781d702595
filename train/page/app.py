"""The page: tabs for what the model's tasks read, and one for its card.

Fonts are the reader's own, nothing is loaded from elsewhere or reported, and there are no routes
for other programs but those of the page itself (`polyhead serve` is for them).
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from gradio.themes import Base

from ...modeling.inputs import TextOrPair
from ...modeling.pipeline_polyhead import PolyheadPipeline
from ..errors import UserError
from ..escape import in_markdown
from ..hub.card import summary_of
from ..inference.pipeline import folder_of, load_pipeline
from ..reports.projection import FEWEST, METHODS, TITLES
from .answers import read, tasks_that_read
from .examples import OURS, by_tasks, examples_of, usual_examples
from .looking import MOST_COMPARED, MOST_ON_A_MAP, compare, draw_map, texts_of
from .markup import escaped, refused

LONGEST = 100_000  # characters of a box
FILES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]
LABELS = {  # by what is read: the boxes, their lines, and what stands below them
    "text": [("Text", 4, "Shift+Enter reads it")],
    "pair": [("First text", 2, None), ("Second text", 2, "Shift+Enter reads them")],
    "choices": [
        ("Text", 2, None),
        ("To choose from", 3, "two or more texts, each on a line; Shift+Enter reads them"),
    ],
}
LARGEST_FILE = "20mb"
SHOWN = 90  # characters of an example on its button
METHODS_SHOWN = {TITLES[name]: name for name in METHODS if name != "umap"}
NO_COLOUR = "none"


def create_page(pipe: PolyheadPipeline, folder: str | Path, title: str) -> gr.Blocks:
    """The page of a model.

    Args:
        pipe: the model.
        folder: where it lies; scores and trainings are read there.
        title: name of the model.

    Raises:
        UserError: a file of the folder holds something else than its name says.
    """
    examples, summary = examples_of(pipe, folder), summary_of(pipe.model.config.tasks, folder)
    tabs: dict[str, Callable[[], Any]] = {}
    for form, name in (("text", "Text"), ("pair", "Pair"), ("choices", "Choices")):
        if tasks_that_read(pipe, form):
            tabs[name] = partial(_reading_tab, pipe, form, examples)
    if pipe.model.config.embedding_tasks:
        tabs["Similarity"] = partial(_similarity_tab, pipe, examples)
    tabs["Map"] = partial(_map_tab, pipe, examples)
    tabs["Scores"] = partial(gr.Markdown, summary, elem_classes="scores")
    page = gr.Blocks(title=f"{title}: Polyhead", analytics_enabled=False, delete_cache=(3600, 3600))
    with page:
        count = len(pipe.model.task_names)
        encoder = pipe.model.config.get_text_config().model_type
        about = f"One {encoder} encoder, {count} task{'s' * (count != 1)}."
        gr.HTML(f"<h1>{escaped(title)}</h1><p>{escaped(about)}</p>")
        with gr.Tabs():
            for name, make in tabs.items():
                with gr.Tab(name):
                    make()
    return page


def open_page(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    compute: str = "auto",
    title: str | None = None,
    opened: Callable[[str], None] = lambda address: None,
) -> None:
    """Load a model and show its page until Ctrl+C.

    Args:
        model: folder or Hub id, of an exported model too.
        host: address; all but loopback is open to others.
        port: of the page.
        compute: how to compute; see `PolyheadPipeline`.
        title: name of the model; default its folder's, or the Hub id.
        opened: called with the page's address.

    Raises:
        UserError: there is no such model, or the port is taken.
    """
    pipe, folder = load_pipeline(model, compute), folder_of(model)
    page = create_page(pipe, folder, title or _name_of(model))
    try:
        launch(page, host, port)
        opened(str(page.local_url).rstrip("/"))
        with suppress(KeyboardInterrupt):
            Event().wait()
        page.close(verbose=False)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        fault_of_port = f"port {port} of {host} is taken or not there; give another by --port"
        raise UserError("demo", [fault_of_port]) from error


def launch(page: gr.Blocks, host: str, port: int | None) -> None:
    """Serve a page from threads of this process.

    Args:
        page: from `create_page`.
        host: address.
        port: None for a free one.
    """
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=LARGEST_FILE,
        theme=Base(font=FONTS, font_mono=MONO).set(body_text_color_subdued="*neutral_500"),
        css=resources.files("polyhead.train.page").joinpath("page.css").read_text("utf-8"),
    )


def _name_of(model: str) -> str:
    """A folder's name with its parent's, because most are called `model`; a Hub id as it is."""
    path = Path(model)
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else model


# ---- tabs ----


def _reading_tab(pipe: PolyheadPipeline, form: str, examples: dict[str, list[TextOrPair]]) -> None:
    """A box for each text, the tasks that read them, and their answers."""
    names, reads = tasks_that_read(pipe, form), LABELS[form]
    boxes = [
        gr.Textbox(label=label, lines=lines, max_lines=16, max_length=LONGEST, info=info)
        for label, lines, info in reads
    ]
    chosen = gr.CheckboxGroup(names, value=names, label="Tasks")
    button = gr.Button("Read", variant="primary")
    listed = by_tasks({name: examples[name] for name in names if name in examples})
    listed = listed or {OURS: usual_examples(pipe, form)}
    shown = gr.HTML()
    with gr.Column(elem_classes="examples"):
        for about, texts in listed.items():
            _examples(about, texts, boxes)

    def answer(*values: Any) -> str:
        return read(pipe, _joined(form, list(values[:-1])), values[-1])

    _on([button.click, *(box.submit for box in boxes)], answer, [*boxes, chosen], shown)


def _examples(about: str, texts: list[TextOrPair], boxes: list[gr.Textbox]) -> None:
    """A button for each example, which puts it into the boxes."""
    gr.Markdown(f"**Examples: {in_markdown(about)}**")
    for text in texts:
        values = _parts(text)
        label = " | ".join(" ".join(value.split()) for value in values)
        button = gr.Button(label if len(label) <= SHOWN else f"{label[: SHOWN - 1]}…", size="sm")
        given = values[0] if len(values) == 1 else values
        _on([button.click], lambda given=given: given, [], boxes)


def _joined(form: str, values: list[str]) -> TextOrPair:
    """What the boxes hold, as the pipeline reads it."""
    values = [value or "" for value in values]
    if form == "text":
        return values[0]
    if form == "pair":
        return values[0], values[1]
    choices = texts_of(values[1])
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} texts to choose from; type two or more, each on a line")
    return values[0], tuple(choices)


def _parts(text: TextOrPair) -> list[str]:
    """An example as the boxes hold it."""
    if isinstance(text, str):
        return [text]
    return [text[0], text[1] if isinstance(text[1], str) else "\n".join(text[1])]


def _similarity_tab(pipe: PolyheadPipeline, examples: dict[str, list[TextOrPair]]) -> None:
    names = list(pipe.model.config.embedding_tasks)
    texts = [text for name in names for text in examples.get(name, []) if isinstance(text, str)]
    texts = texts or [text for text in usual_examples(pipe, "text") if isinstance(text, str)]
    box = gr.Textbox(
        "\n".join(" ".join(text.split()) for text in texts),
        label="Texts",
        info=f"2 to {MOST_COMPARED}, each on a line; Shift+Enter compares them",
        lines=6,
        max_length=LONGEST,
    )
    task = gr.Dropdown(names, value=names[0], label="Embedding task", visible=len(names) > 1)
    button, shown = gr.Button("Compare", variant="primary"), gr.HTML()
    _on([button.click, box.submit], partial(compare, pipe), [box, task], shown)


def _map_tab(pipe: PolyheadPipeline, examples: dict[str, list[TextOrPair]]) -> None:
    configs, names = pipe.model.config.tasks, list(pipe.model.config.embedding_tasks)
    colours = [name for name in tasks_that_read(pipe, "text") if configs[name].problem_type]
    box = gr.Textbox(
        label="Texts",
        info=f"{MOST_ON_A_MAP:,} at most, each on a line; Shift+Enter draws them",
        lines=6,
        max_lines=12,
        max_length=20 * LONGEST,
    )
    with gr.Row():
        file = gr.File(label="or a file", file_types=list(FILES), height=120)
        column = gr.Textbox("text", label="Column with the texts", max_length=200)
    with gr.Row():
        color = gr.Dropdown(
            [*colours, NO_COLOUR], value=[*colours, NO_COLOUR][0], label="Colour by what it says"
        )
        method = gr.Radio(list(METHODS_SHOWN), value=next(iter(METHODS_SHOWN)), label="Method")
        task = gr.Dropdown(
            names, value=names[0] if names else None, label="Embedding", visible=len(names) > 1
        )
    button, shown = gr.Button("Draw", variant="primary"), gr.HTML()
    texts = [text for of_task in examples.values() for text in of_task if isinstance(text, str)]
    if len(texts) >= FEWEST["pca"]:
        with gr.Column(elem_classes="examples"):
            fill = gr.Button("the examples of all tasks", size="sm")
            lines = "\n".join(dict.fromkeys(" ".join(text.split()) for text in texts))
            _on([fill.click], lambda: lines, [], box)

    def draw(
        lines: str, path: str | None, column: str, color: str, method: str, task: str | None
    ) -> str:
        options: dict[str, Any] = {"column": column, "task": task, "method": METHODS_SHOWN[method]}
        options["color"] = None if color == NO_COLOUR else color
        return draw_map(pipe, lines or "", path, **options)

    _on([button.click, box.submit], draw, [box, file, column, color, method, task], shown)


def _on(triggers: list[Any], function: Callable[..., Any], inputs: list[Any], outputs: Any) -> None:
    """Run a function of a tab; what the user can mend is told where the answer would stand."""

    def told(*values: Any) -> Any:
        try:
            return function(*values)
        except UserError as error:
            return refused("\n".join(error.faults))
        except ValueError as error:
            return refused(str(error))

    for trigger in triggers:
        trigger(told, inputs, outputs, api_visibility="private", show_progress="minimal")

"""The page: the picture on the left, what is asked of it on the right."""

from collections.abc import Sequence
from importlib import resources
from typing import Any, get_args

import gradio as gr

from dinov3seg_jax.app.downloads import available
from dinov3seg_jax.app.handlers import Handlers
from dinov3seg_jax.formats.outputs import DEFAULT
from dinov3seg_jax.text.class_lists.asked import Synonyms

DEVICE, FILES = "device", "files"  # what waits for the same thing waits in one queue
KEPT = (600, 600)  # seconds between deletions, and after which a file of Gradio's is deleted
UNFIT = "what was sent does not fit; send a picture's file by gradio_api/upload, and all else as the API page says"
ADDRESSES = ("http:", "https:")
NAMES_HELP = "names with commas between them, as on the command line"


class Page(gr.Blocks):
    """Whose inputs are checked before they are read."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> Any:
        """Gradio's own, which would fetch an address, and say nothing of what does not fit."""
        if any(isinstance(given, dict) and str(given.get("path")).startswith(ADDRESSES) for given in inputs):
            raise gr.Error("the picture is an address; upload the file itself", print_exception=False)
        try:
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except gr.Error:
            raise
        except Exception:
            raise gr.Error(UNFIT, print_exception=False) from None


def asset(name: str) -> str:
    """A file beside this one."""
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Of the page; fonts are the reader's own, so that nothing is asked of other hosts."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
    mono = ("ui-monospace", "monospace")
    made = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono)
    return made.set(  # what Gradio has is too pale to read
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


def build(handlers: Handlers, examples: Sequence[tuple[str, str]] = ()) -> Page:
    """The page and its API.

    Args:
        handlers: of the app.
        examples: pictures' paths, each with names.
    """
    models = handlers.asker.models.names

    def view(token: str) -> dict[str, Any]:  # Gradio marks what the browser may call, which no method lets it do
        return handlers.view(token)

    def heat(asked: Any) -> dict[str, Any]:
        return handlers.heat(asked)

    with Page(title="dinov3seg", analytics_enabled=False, delete_cache=KEPT) as page:
        gr.HTML("<h1>dinov3seg</h1><p>Name what is in a picture, and see where it is.</p>", elem_id="title")
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="seen"):
                viewer = gr.HTML(
                    "",
                    html_template=asset("viewer.html"),
                    js_on_load=asset("viewer.js"),
                    server_functions=[view, heat],
                    apply_default_css=False,
                    elem_id="viewer",
                )
            with gr.Column(elem_id="asked"):
                picture = gr.File(label="Picture", height=140, elem_id="picture")
                names = gr.Textbox(
                    label="Names", info=NAMES_HELP, placeholder="dog|puppy, grass, sky", lines=2, elem_id="names"
                )
                chips = gr.HTML("", elem_id="chips")
                go = gr.Button("Segment", variant="primary", elem_id="segment")
                status = gr.HTML("", elem_id="status")
                readiness = gr.HTML("", elem_id="readiness")
            with gr.Column(elem_id="more"):
                if examples:
                    gr.Examples(
                        [list(example) for example in examples],
                        [picture, names],
                        example_labels=[f"Scene {number}" for number in range(1, len(examples) + 1)],
                        label="Painted scenes for the quick start's model",
                    )
                with gr.Accordion("Download", open=False, elem_id="download-box"):
                    formats = gr.CheckboxGroup(available(), value=list(DEFAULT), label="Formats", elem_id="formats")
                    save = gr.Button("Download", elem_id="download")
                    archive = gr.DownloadButton("", visible="hidden", elem_id="archive")
                    drawing = gr.Textbox(visible=False)
                with gr.Accordion("More about the names", open=False, elem_id="names-box"):
                    other = gr.Textbox(
                        label="Compare with", info="a second list", placeholder="animal, plant, sky", elem_id="other"
                    )
                    other_chips = gr.HTML("", elem_id="other-chips")
                    background = gr.Textbox(
                        label="Background",
                        info="names that compete, and become one class",
                        placeholder="sky, other",
                        elem_id="background",
                    )
                    synonyms = gr.Radio(
                        list(get_args(Synonyms)),
                        value="mean",
                        label="Synonyms, as in dog|puppy",
                        info="the mean of the names counts, or the best of them",
                        elem_id="synonyms",
                    )
                with gr.Accordion("Model", open=False, elem_id="model-box"):
                    model = gr.Dropdown(models, value=models[0], label="Model", elem_id="model")

        own: dict[str, Any] = {"api_visibility": "private"}
        quick = own | {"queue": False, "show_progress": "hidden"}
        page.load(handlers.readiness, model, readiness, concurrency_limit=None, show_progress="hidden", **own)
        model.input(handlers.choose, model, readiness, concurrency_limit=None, show_progress="hidden", **own)
        viewer.dropped(handlers.dropped, None, picture, show_progress="hidden", **own)
        picture.change(handlers.look, picture, [viewer, status], concurrency_id=FILES, concurrency_limit=2, **own)
        for box, shown in ((names, chips), (other, other_chips)):
            gr.on(
                [box.change, background.change],
                handlers.chips,
                [box, background, model],
                shown,
                trigger_mode="always_last",
                **quick,
            )
        gr.on(
            [go.click, names.submit],
            handlers.answer,
            [picture, names, background, synonyms, other, model],
            [viewer, status],
            concurrency_id=DEVICE,
            concurrency_limit=1,
            show_progress_on=status,
            **own,
        )
        save.click(
            handlers.download,
            [viewer, formats, drawing],
            archive,
            js="(token, formats) => [token, formats, window.dinov3seg.drawing()]",
            concurrency_id=FILES,
            **own,
        ).success(None, js="() => document.querySelector('#archive').click()", **own)
        page.unload(handlers.close)
        _api(handlers)
    return page


def _api(handlers: Handlers) -> None:
    """The same functions for programs; what they take and return is on the page's API page."""
    with gr.Group(visible=False):
        asked = [
            gr.File(label="the picture's file"),
            gr.Textbox(label="names, as on the command line"),
            gr.Textbox("", label="names that compete, and become one class"),
            gr.Textbox("mean", label="mean or best"),
            gr.Number(0, label="0..1; below it a pixel is unknown"),
            gr.Textbox("", label="what such pixels are called"),
            gr.Textbox("", label="a second list of names, or nothing"),
            gr.Textbox("", label="one of /models; nothing: the first"),
            gr.JSON(["json"], label="a list of /formats"),
            gr.Textbox("", label="pixels of a region, at least: 50, or dog=50,sky=500"),
            gr.Number(0, label="pixels that borders of polygons may move"),
            gr.Number(0.55, label="0..1, opacity of the overlay"),
            gr.JSON({}, label="#rrggbb by names"),
        ]
        call = gr.Button()
        summaries = gr.JSON(label="summaries")
        archive = gr.File(label="archive")
    call.click(
        handlers.api_segment,
        asked,
        [summaries, archive],
        api_name="segment",
        concurrency_id=DEVICE,
    )
    gr.api(handlers.api_understand, api_name="understand", queue=False)
    gr.api(handlers.api_models, api_name="models", queue=False)
    gr.api(handlers.api_formats, api_name="formats", queue=False)

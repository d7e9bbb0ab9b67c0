"""What happens when somebody does something on the page, or calls the API: gradio's words to ours and back."""

import asyncio
import contextlib
import html
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dinov3seg_jax.app.asking import Asker
from dinov3seg_jax.app.downloads import FORMATS, Drawing, archive, check_formats
from dinov3seg_jax.app.results import Results
from dinov3seg_jax.app.view import heat_of, view_of_picture, view_of_result
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.text.prompts import described

OURS = "something went wrong here, and what was asked is not to blame; the terminal of the app says more"
LOOK_EVERY = 0.5  # seconds, at a model that is not ready
TITLES = 60  # letters of a list of names above its picture


@contextlib.contextmanager
def spoken(escape: Callable[[str], str] = html.escape) -> Iterator[None]:
    """What goes wrong, as one sentence; the page takes that for HTML, the API for text."""
    try:
        yield
    except UserError as error:
        raise gr.Error(escape(str(error)), title="This cannot be done", print_exception=False) from None
    except (gr.Error, GeneratorExit):
        raise
    except Exception:
        traceback.print_exc(file=sys.stderr)
        raise gr.Error(OURS, print_exception=False) from None


@dataclass(frozen=True)
class Handlers:
    """Of one app."""

    asker: Asker
    results: Results
    files: Path  # a folder for archives

    def look(self, picture: str | None, request: gr.Request) -> tuple[str, str]:
        """A picture was dropped, or taken away: its view's token, and a sentence."""
        session = request.session_hash or ""
        if not picture:
            self.results.forget(session)
            return "", sentence("")
        path = Path(picture)
        try:
            with spoken(str):
                rgb = self.asker.read(path, path.name).rgb
                token = self.results.keep(session, path.name, [], view_of_picture(rgb))
        except gr.Error as error:
            return "", sentence(error.message, wrong=True)
        return token, sentence(f"{path.name}: {rgb.shape[1]:,} x {rgb.shape[0]:,} pixels")

    def chips(self, text: str, model: str) -> str:
        """A list of names was typed: how it was understood, as HTML."""
        if not (text or "").strip():
            return ""
        try:
            asked = self.asker.understand(text, model)
        except UserError as error:
            return sentence(str(error), wrong=True)
        return f'<ul class="chips">{"".join(f"<li>{html.escape(described(one))}</li>" for one in asked.classes)}</ul>'

    def answer(
        self, picture: str | None, names: str, other_names: str, model: str, request: gr.Request
    ) -> Iterator[tuple[Any, str]]:
        """The button was pressed: sentences while it works, then the view's token."""
        started = time.perf_counter()
        try:
            with spoken(str):
                if not picture:
                    raise UserError("there is no picture; drop one first")
                path = Path(picture)
                lists = [text for text in (names, other_names) if text and text.strip()] or [""]
                work = self.asker.ask(path, path.name, lists, model)
                while True:
                    try:
                        yield gr.skip(), sentence(f"{next(work)} ...")
                    except StopIteration as finished:
                        results = finished.value
                        break
                yield gr.skip(), sentence("drawing ...")
                view = view_of_picture(results[0].image)
                view["results"] = [
                    view_of_result(result, one_line(text, TITLES)) for result, text in zip(results, lists, strict=True)
                ]
                token = self.results.keep(request.session_hash or "", path.name, results, view)
                yield token, sentence(f"done in {time.perf_counter() - started:.1f} s")
        except gr.Error as error:
            yield gr.skip(), sentence(error.message, wrong=True)

    def download(self, token: str, formats: Sequence[str], drawing: str) -> str:
        """Files of the answer that is shown, as an archive."""
        with spoken():
            if not token:
                raise UserError("there is no answer yet; segment a picture first")
            answer = self.results.find(token)
            if not answer.results:
                raise UserError("there is no answer yet; press Segment first")
            return str(archive(answer.results, answer.name, formats, Drawing.read(drawing), self.files))

    async def readiness(self, model: str) -> AsyncIterator[str]:
        """How far a model is, until it is ready."""
        models, started = self.asker.models, time.perf_counter()
        while model in models.busy:
            yield sentence(f"{models.busy[model]} ({time.perf_counter() - started:.0f} s); you can ask already")
            await asyncio.sleep(LOOK_EVERY)
        yield sentence(models.broken.get(model, ""), wrong=True)

    async def choose(self, model: str) -> AsyncIterator[str]:
        """Another model was chosen."""
        with spoken():
            self.asker.models.folder(model)
        if not self.asker.models.is_ready(model) and model not in self.asker.models.busy:
            self.asker.models.warm(model)
            await asyncio.sleep(LOOK_EVERY)
        async for text in self.readiness(model):
            yield text

    def close(self, request: gr.Request) -> None:
        """A page was closed."""
        self.results.forget(request.session_hash or "")

    def view(self, token: str) -> dict[str, Any]:
        """What the browser draws; "error" is a sentence where there is nothing to draw."""
        try:
            return self.results.find(str(token)).view
        except UserError as error:
            return {"error": str(error)}

    def heat(self, token: str, number: int, place: int) -> dict[str, Any]:
        """The scores of one class; see `view.heat_of`."""
        try:
            results = self.results.find(str(token)).results
            if not (0 <= int(number) < len(results) and 0 <= int(place) < len(results[number].names)):
                raise UserError("there is no such class; ask again")
            return heat_of(results[number], int(place))
        except UserError as error:
            return {"error": str(error)}

    def api_segment(
        self,
        picture: str | None,
        names: str,
        other_names: str,
        model: str,
        formats: Sequence[str],
        min_confidence: float,
        opacity: float,
        colors: dict[str, str],
    ) -> tuple[list[dict[str, Any]], str]:
        """Segment a picture by a list of names, or two: the summary of each, and an archive of the files."""
        with spoken(str):
            if not picture:
                raise UserError("there is no picture; upload one and give its path")
            drawing = Drawing.of(opacity=opacity, min_confidence=min_confidence, colors=colors or {})
            wanted, path = check_formats(formats), Path(picture)
            lists = [names, other_names] if other_names and other_names.strip() else [names]
            results = _last(self.asker.ask(path, path.name, lists, model or self.asker.models.names[0]))
            summaries = [{"file": path.name} | drawing.applied(result).summary() for result in results]
            return summaries, str(archive(results, path.name, wanted, drawing, self.files))

    def api_understand(self, names: str) -> list[str]:
        """The classes in a list of names, as they are understood; no picture and no model is asked."""
        with spoken(str):
            return list(self.asker.understand(names).names)

    def api_models(self) -> list[dict[str, Any]]:
        """The models that can be asked, the default one first, and whether each is loaded."""
        models = self.asker.models
        return [{"name": name, "ready": models.is_ready(name)} for name in models.names]

    def api_formats(self) -> list[str]:
        """The formats that an archive can hold."""
        return list(FORMATS)


def _last(work: Generator[str, None, list[Segmentation]]) -> list[Segmentation]:
    """What a generator returns, whatever it yields."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def sentence(text: str, wrong: bool = False) -> str:
    """A line of the page."""
    return f'<div class="sentence{" wrong" if wrong else ""}">{html.escape(text)}</div>'

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
import numpy as np

from dinov3seg_jax.app import memory
from dinov3seg_jax.app.asking import Asker, Typed, has_place
from dinov3seg_jax.app.downloads import Drawing, archive, available, check_formats
from dinov3seg_jax.app.results import Answer, Results
from dinov3seg_jax.app.view import heat_of, heat_side, quantize, reduced, view_of_picture, view_of_result
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.text.class_lists import ClassList, NamedClass
from dinov3seg_jax.text.prompts import described

OURS = "something went wrong here, and what was asked is not to blame; the terminal of the app says more"
LOOK_EVERY = 0.5  # seconds, at a model that is not ready
TITLES = 60  # letters of a list of names above its picture

Work = Generator[str, None, Answer]


@contextlib.contextmanager
def spoken(escape: Callable[[str], str] = str) -> Iterator[None]:
    """What goes wrong, as one sentence; in a notice of the page, which takes it for HTML, it has to be escaped."""
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

    def dropped(self, event: gr.EventData) -> str:
        """A file was dropped on the view, which has uploaded it."""
        path = Path(str(event._data.get("path")))
        with spoken(html.escape):
            if not path.resolve().is_relative_to(self.files):
                raise UserError("this was not uploaded; drop a picture's file")
            return str(path)

    def look(self, picture: str | None, request: gr.Request) -> tuple[str, str]:
        """A picture was dropped, or taken away: its view's token, and a sentence."""
        session = request.session_hash or ""
        if not picture:
            self.results.forget(session)
            return "", sentence("")
        path = Path(picture)
        try:
            with spoken():
                rgb = self.asker.read(path, path.name).rgb
                token = self.results.keep(session, Answer(path.name, view_of_picture(rgb)))
        except gr.Error as error:
            return "", sentence(error.message, wrong=True)
        return token, sentence(f"{path.name}: {rgb.shape[1]:,} x {rgb.shape[0]:,} pixels")

    def chips(self, names: str, background: str, model: str) -> str:
        """A list of names was typed: how it was understood, as HTML."""
        if not (names or "").strip():
            return ""
        try:
            asked = self.asker.understand(Typed(names, background), model)
        except UserError as error:
            return sentence(str(error), wrong=True)
        chips = [*map(_chip, asked.classes), *(_chip(one, "background: ") for one in asked.background)]
        return f'<ul class="chips">{"".join(chips)}</ul>'

    def answer(
        self,
        picture: str | None,
        names: str,
        background: str,
        synonyms: str,
        other_names: str,
        model: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, str]]:
        """The button was pressed: sentences while it works, then the view's token."""
        started = time.perf_counter()
        try:
            with spoken():
                if not picture:
                    raise UserError("there is no picture; drop one first")
                lists = [names, other_names] if (other_names or "").strip() else [names]
                work = self._work(Path(picture), [Typed(text, background, synonyms) for text in lists], model)
                while True:
                    try:
                        yield gr.skip(), sentence(f"{next(work)} ...")
                    except StopIteration as finished:
                        token = self.results.keep(request.session_hash or "", finished.value)
                        break
                memory.give_back()
                yield token, sentence(f"done in {time.perf_counter() - started:.1f} s")
        except gr.Error as error:
            yield gr.skip(), sentence(error.message, wrong=True)

    def _work(self, path: Path, lists: list[Typed], model: str) -> Work:
        found = yield from self.asker.ask(path, path.name, lists, model)
        yield "drawing"
        results = tuple(result for _, result in found)
        view = view_of_picture(results[0].image)
        view["results"] = [
            view_of_result(result, one_line(typed.names, TITLES)) for result, typed in zip(results, lists, strict=True)
        ]
        return _answer(path, view, model, found)

    def download(self, token: str, formats: Sequence[str], drawing: str) -> str:
        """Files of the answer that is shown, as an archive."""
        with spoken(html.escape):
            answer = self.results.find(token) if token else None
            if answer is None or not answer.results:
                raise UserError("there is no answer yet; press Segment first")
            return self._archive(answer, Drawing.read(drawing), formats)

    def _archive(self, answer: Answer, drawing: Drawing, formats: Sequence[str], *options: Any) -> str:
        def score(number: int) -> np.ndarray:
            return self.asker.scores(answer.results[number].image, answer.asked[number], answer.model)

        return str(archive(answer, check_formats(formats, *options), drawing, self.files, score))

    async def readiness(self, model: str) -> AsyncIterator[str]:
        """How far a model is, until it is ready."""
        models, started = self.asker.models, time.perf_counter()
        while model in models.busy:
            yield sentence(f"{models.busy[model]} ({time.perf_counter() - started:.0f} s); you can ask already")
            await asyncio.sleep(LOOK_EVERY)
        yield sentence(models.broken.get(model, ""), wrong=True)

    async def choose(self, model: str) -> AsyncIterator[str]:
        """Another model was chosen."""
        with spoken(html.escape):
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

    def heat(self, asked: Any) -> dict[str, Any]:
        """The scores of one class in the picture at the size of its view; see `view.heat_of`.

        Args:
            asked: a token, the number of the list of names, and that of the class.
        """
        try:
            with spoken():
                token, number, place = asked if _is_place(asked) else ("", 0, 0)
                answer = self.results.find(token)
                if not 0 <= number < len(answer.results):
                    raise UserError("there is no such answer; ask again")
                scores = self.results.once(token, f"scores_{number}", lambda: self._scores(answer, number))
                if not 0 <= place < len(scores):
                    raise UserError("this class has no score of its own; choose another")
                return heat_of(scores[place])
        except gr.Error as error:
            return {"error": error.message}

    def _scores(self, answer: Answer, number: int) -> np.ndarray:
        asked, image = answer.asked[number], answer.results[number].image
        return quantize(self.asker.scores(reduced(image, heat_side(len(asked.rows))), asked, answer.model))

    def api_segment(
        self,
        picture: str | None,
        names: str,
        background: str,
        synonyms: str,
        min_confidence: float,
        unknown: str,
        other_names: str,
        model: str,
        formats: Sequence[str],
        min_area: str,
        simplify: float,
        opacity: float,
        colors: dict[str, str],
    ) -> tuple[list[dict[str, Any]], str]:
        """Segment a picture by a list of names, or two: the summary of each, and an archive of the files."""
        with spoken():
            if not picture:
                raise UserError("there is no picture; upload one and give its path")
            path, model = Path(picture), model or self.asker.models.names[0]
            drawing = Drawing.of(opacity=opacity, colors=colors or {})
            check_formats(formats, min_area, simplify)
            lists = [
                Typed(text, background or "", synonyms, min_confidence, unknown)
                for text in ([names, other_names] if str(other_names or "").strip() else [names])
            ]
            answer = _answer(path, {}, model, _last(self.asker.ask(path, path.name, lists, model)))
            summaries = [{"file": answer.name} | result.summary() for result in answer.results]
            archived = self._archive(answer, drawing, formats, min_area, simplify)
            del answer
            memory.give_back()
            return summaries, archived

    def api_understand(self, names: str, background: str = "") -> list[str | dict[str, Any]]:
        """The classes in a list of names, as they are understood: each a text, or a row with what is said of it."""
        with spoken():
            asked = self.asker.understand(Typed(names, background))
            return [one.row() for one in (*asked.classes, *asked.background)]

    def api_models(self) -> list[dict[str, Any]]:
        """The models that can be asked, the default one first, and whether each is loaded."""
        models = self.asker.models
        return [{"name": name, "ready": models.is_ready(name)} for name in models.names]

    def api_formats(self) -> list[str]:
        """The formats that an archive can hold here."""
        return available()


def sentence(text: str, wrong: bool = False) -> str:
    """A line of the page."""
    return f'<div class="sentence{" wrong" if wrong else ""}">{html.escape(text)}</div>'


def _is_place(asked: Any) -> bool:
    """Whether a token and two numbers came from a browser."""
    return isinstance(asked, list) and len(asked) == 3 and all(map(isinstance, asked, (str, int, int)))


def _answer(path: Path, view: dict[str, Any], model: str, found: list[tuple[ClassList, Any]]) -> Answer:
    asked, results = zip(*found, strict=True)
    return Answer(path.name, view, model, asked, results, path if has_place(path) else None)


def _last(work: Generator[str, None, Any]) -> Any:
    """What a generator returns, whatever it yields."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            return finished.value


def _chip(one: NamedClass, before: str = "") -> str:
    return f"<li>{html.escape(before + described(one))}</li>"

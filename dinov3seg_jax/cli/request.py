"""What predict and warmup ask of a model, checked as far as that goes without loading it."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from dinov3seg_jax import fonts
from dinov3seg_jax.cli.parsing import add_folder_argument, add_step_argument, count
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import override_inference
from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.inference.load import Way, calibration_of, load, section_of, way_of
from dinov3seg_jax.inference.recipes import RESULTS_VERSION
from dinov3seg_jax.store.folder import ModelFolder, open_folder
from dinov3seg_jax.text.class_lists import ClassList
from dinov3seg_jax.text.class_lists.asked import UNKNOWN, Synonyms
from dinov3seg_jax.text.prompts import check_asked, load_templates, understood
from dinov3seg_jax.text.tokenizers import open_tokenizer
from dinov3seg_jax.visualize import COLORBLIND_ENDS, PALETTES

if TYPE_CHECKING:
    import jax

    from dinov3seg_jax.inference.base import BaseSegmenter

MODEL_EPILOG = """\
--config.inference.OPTION=VALUE changes how pictures are segmented, as in --config.inference.image_size=320;
with --zero_shot it is --config.zero_shot.OPTION=VALUE."""


class Request(NamedTuple):
    """A model, and what it is asked."""

    folder: ModelFolder
    way: Way
    overrides: list[str]
    asked: ClassList
    config: Config  # of the run, or the default one

    def question(self) -> dict[str, Any]:
        """All that results depend on beside the pictures, by the words that a user knows it by."""
        options = getattr(self.config, section_of(self.way))
        calibration = calibration_of(self.folder, self.way, self.config)
        return {
            "weights": self.folder.fingerprint,
            **self.asked.question(),
            "calibration": calibration and calibration.temperature,
            "options": {"zero_shot": self.way == "zero_shot"} | dataclasses.asdict(options),
            "versions of this program": RESULTS_VERSION,
        }


def add_class_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what stands beside the names."""
    group = parser.add_argument_group("what else is asked (docs/class_lists.md, docs/confidence.md)")
    group.add_argument(
        "--background",
        nargs="+",
        metavar="NAMES",
        help="as for --classes: names that compete, and become one class, 'background'",
    )
    group.add_argument(
        "--synonyms",
        choices=get_args(Synonyms),
        default="mean",
        help="how names of one class, as in 'dog|puppy', count: by their mean, or each by itself; default: %(default)s",
    )
    group.add_argument(
        "--min_confidence",
        type=float,
        default=0.0,
        metavar="X",
        help="from 0 to 1; a pixel whose best class is less sure is unknown; default: 0, none is",
    )
    group.add_argument("--unknown", metavar="NAME", help="what such pixels are called; default: unknown")
    group.add_argument(
        "--palette",
        type=str.lower,
        choices=PALETTES,
        default=ClassList.palette,
        help="colours of the classes that have none in the list (docs/overlays.md); default: %(default)s",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which model runs, and how."""
    group = parser.add_argument_group("model", MODEL_EPILOG)
    add_folder_argument(group, " (dinov3seg models)", required=True)
    add_step_argument(group)
    group.add_argument(
        "--zero_shot",
        action="store_true",
        help="use the towers alone, without a trained head; always so for converted weights",
    )
    group.add_argument(
        "--batch", type=count, default=1, metavar="N", help="pictures that run together; default: %(default)s"
    )


def check_request(options: argparse.Namespace, overrides: Sequence[str]) -> Request:
    """Check names and options.

    Raises:
        UserError: they cannot be used, whatever the model.
    """
    asked = _asked(options)
    folder = open_folder(options.checkpoint, options.step)
    way = way_of(folder, options.zero_shot)
    way = "zero_shot" if way == "linear" else way  # which is refused when it is read
    config = override_inference(Config() if folder.kind == "run" else folder.config, overrides, section_of(way))
    model = config.model
    templates = load_templates(config.zero_shot.templates) if way == "zero_shot" else config.inference.templates
    check_asked(asked, open_tokenizer(model), templates, model.text.context_length)
    return Request(folder, way, list(overrides), asked, config)


def _asked(options: argparse.Namespace) -> ClassList:
    if options.unknown is not None and not options.min_confidence:
        raise UserError("--unknown names the pixels below --min_confidence, which is not given; add it, as in 0.3")
    asked = ClassList.of(
        _one_list(options.classes, "--classes"),
        background=() if options.background is None else _one_list(options.background, "--background"),
        synonyms=options.synonyms,
        min_confidence=options.min_confidence,
        unknown=UNKNOWN if options.unknown is None else options.unknown,
        palette=options.palette,
    )
    count = len(asked.names)
    if asked.palette == "colorblind" and count > COLORBLIND_ENDS:
        note(f"all eyes tell {COLORBLIND_ENDS} colours apart, and these are {count} classes; see docs/overlays.md")
    return asked


def _one_list(words: Sequence[str] | str, option: str) -> str:
    """A list of names, which is one word of the command line."""
    if isinstance(words, str) or len(words) == 1:
        return words if isinstance(words, str) else words[0]
    text = (" " if any("," in word for word in words) else ", ").join(words)
    raise UserError(f'{option} got {len(words)} words; put the list in quotes, as {option} "{text}"')


def with_own_config(request: Request) -> Request:
    """The request with the model's own config, where it has one.

    Raises:
        UserError: there is no model, or the options do not fit its others.
    """
    if request.folder.kind == "converted":
        return request
    config = override_inference(request.folder.config, request.overrides, section_of(request.way))
    return request._replace(config=config)


def load_model(request: Request, devices: "Sequence[jax.Device]" = ()) -> "tuple[BaseSegmenter, ClassList]":
    """The model, and what is asked, which is shown; programs are kept on disk from here on.

    Args:
        request: checked.
        devices: that share batches out; default the first.

    Raises:
        UserError: the model cannot be loaded, or does not take these names.
    """
    from dinov3seg_jax.cache.programs import keep_programs

    print(understood(request.asked), flush=True)
    if boxed := fonts.boxed(request.asked.names):
        more = f" and {len(boxed) - 1} more" if len(boxed) > 1 else ""
        print(f"note: no font here has the letters of '{boxed[0]}'{more}; install the extra 'fonts'", file=sys.stderr)
    keep_programs()
    zero_shot = request.way == "zero_shot"
    shared: dict[str, Any] = {"devices": devices} if devices else {}
    model = load(request.folder, request.overrides, zero_shot=zero_shot, **shared)
    asked = model.check_names(request.asked)
    if zero_shot:
        print(model.describe(), flush=True)
    return model, asked

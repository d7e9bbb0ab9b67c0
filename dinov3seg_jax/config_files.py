"""Recipes: a file in `configs/` and a command line become a checked `Config`."""

import ast
import dataclasses
import importlib.util
import inspect
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
from ml_collections import ConfigDict

from dinov3seg_jax.config import Config, to_config_dict
from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import local_copy

PACKAGE = Path(__file__).parent
RECIPES = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"  # installed; a checkout


def from_dict(values: dict[str, Any], origin: str = "config") -> Config:
    """Check plain nested values against `Config`.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range; it names the key.
    """
    try:
        return pydantic.TypeAdapter(Config).validate_python(_tuples(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"{origin}: unknown option '{key}'{_suggestion(first['loc'])}.") from None
        given = one_line(repr(first["input"]), 100)
        raise UserError(f"{origin}: '{key}' is {given}, but {_lower(first['msg'])}.") from None


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `--config.section.option=value` (or two words) on a command line from the rest.

    Returns:
        Overrides of the form "section.option=value", and the other arguments.
    """
    overrides, rest, words = [], [], iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        override = word.removeprefix("--config.")
        overrides.append(override if "=" in override else f"{override}={next(words, '')}")
    return overrides, rest


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Read `get_config()` of a recipe and apply overrides like `train.steps=100`.

    Args:
        name: a Python file, or one of the recipes that come along: "ade" and "configs/ade.py" are the same one. With
            `NAME:WORD` it is `get_config(WORD)`, where a file holds several recipes. A recipe that begins with a model
            takes the word from the option `init_from` too, if its `get_config` calls its argument that.
        overrides: "section.option=value".

    Raises:
        UserError: there is no such recipe, or it does not define a usable config; an override does not fit.
    """
    scheme, slashes, rest = name.rpartition("://")
    path, *words = rest.split(":", 1)
    path = scheme + slashes + path
    file = find_recipe(path)
    spec = importlib.util.spec_from_file_location("run_config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config '{path}' is not a Python file; name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        values = _get_config(module, name, words, overrides)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's own Python file raises
        why = f"{type(error).__name__}: {one_line(error, 200)}{_line_of(error, file)}"
        raise UserError(f"config '{name}' cannot be read: {why}; correct that file.") from error
    for override in overrides:
        apply_override(values, override)
    return from_dict(values, origin=name)


def _get_config(module: ModuleType, name: str, words: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """What `get_config` of a recipe returns, as plain nested values."""
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"config '{name}' has no function get_config(); write one, as configs/quickstart.py does.")
    try:
        asked = inspect.signature(function)
        words = _with_model(asked, name, words, overrides)
        asked.bind(*words)
    except TypeError:
        mend = f"leave ':{words[0]}' out" if words else f"name one of its recipes, as in {name}:WORD"
        raise UserError(f"config '{name}' cannot be read: its get_config() takes other arguments; {mend}.") from None
    config = function(*words)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config '{name}' cannot be read: its get_config() returns a {type(config).__name__}; return what "
            "dinov3seg_jax.config.default_config() gave, with your changes."
        )
    return config.to_dict()


def _with_model(asked: inspect.Signature, name: str, words: Sequence[str], overrides: Sequence[str]) -> Sequence[str]:
    """The word of a recipe that begins with a model, wherever that was named."""
    named = [text.removeprefix("init_from=") for text in overrides if text.startswith("init_from=")]
    if "init_from" not in asked.parameters or not named:
        return words
    if words and words[0] != named[-1]:
        raise UserError(
            f"config '{name}' and --config.init_from={named[-1]} name two models to begin with; leave one of them out."
        )
    return named[-1:]


def _line_of(error: BaseException, file: Path) -> str:
    """Where in a file something was raised."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f" (line {frames[-1]})" if frames else ""


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or in `configs/` here, or one of those that come along.

    Raises:
        UserError: there is none; it names those that there are.
    """
    file = expanded(name)
    stem = file.stem if file.parent in (Path(), Path("configs")) and file.suffix in ("", ".py") else ""
    for found in (file, Path("configs", f"{stem}.py"), RECIPES / f"{stem}.py"):
        if found.is_file():
            return local_copy(found)
    known = sorted(recipe.stem for recipe in RECIPES.glob("*.py"))
    what = "is a folder" if file.is_dir() else "does not exist"
    raise UserError(
        f"config '{one_line(name, 100)}' {what}{did_you_mean(stem, known)}; name a file, or one of {', '.join(known)}."
    )


def override_inference(config: Config, overrides: Sequence[str], section: str = "inference") -> Config:
    """Change how a model is used: everything else in its config belongs to its parameters.

    Raises:
        UserError: an override is not of the form section.option=value, or its option or value does not fit.
    """
    values = to_config_dict(config).to_dict()
    for text in overrides:
        if not text.startswith(f"{section}."):
            raise UserError(f"'{text}' cannot be changed for a trained model; only {section}.option=value can")
        apply_override(values, text)
    return from_dict(values, origin="the command line")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one option, given as "section.option=value", in plain nested values.

    Raises:
        UserError: it is not of that form, or there is no such option.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override '{override}' is not of the form section.option=value.")
    *sections, option = key.split(".")
    everything = values
    for section in sections:
        values = values.get(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override '{override}': '{section}' is not a section.")
    if option not in values:
        hint = (did_you_mean(option, values) if sections else "") or _elsewhere(key, everything)
        raise UserError(f"override '{one_line(override, 100)}': there is no option '{one_line(key, 100)}'{hint}.")
    try:
        values[option] = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it raises for a text
        values[option] = text


def _elsewhere(key: str, values: dict[str, Any]) -> str:
    """A hint at an option whose section was left out or mistyped."""
    options = list(_options(values))
    named = [option for option in options if option.split(".")[-1] == key.split(".")[-1]]
    if len(named) > 1 and "." not in key:
        return f" (did you mean one of {', '.join(named)}?)"
    return did_you_mean(key, named or options) or (f" (did you mean '{named[0]}'?)" if len(named) == 1 else "")


def _options(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = {field.name: field.type for field in dataclasses.fields(section)}[str(part)]
    return did_you_mean(str(location[-1]), (field.name for field in dataclasses.fields(section)))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]

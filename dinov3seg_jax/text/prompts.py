"""Class names and the prompts made of them: template sets, and the checks on names a user typed."""

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.tokenizer import CONTEXT_LENGTH, END_ID, START_ID, Tokenizer

SLOT = "{}"
PAPER = ("A photo of a {} in the scene",)
TEMPLATE_SETS = ("paper", "imagenet_80")
NAME_FILES = (".txt", ".json")
LENGTH_STEP = 8


def load_templates(name: str) -> tuple[str, ...]:
    """A named template set.

    Args:
        name: "paper", the one prompt of the method (docs/method.md §1), or "imagenet_80", CLIP's 80 prompts, which
            the zero-shot mode averages (docs/method.md §8).

    Returns:
        The templates, each with the slot `{}`.

    Raises:
        UserError: There is no set of that name.
    """
    if name == "paper":
        return PAPER
    if name not in TEMPLATE_SETS:
        raise UserError(f"there is no template set {name!r}; choose one of {', '.join(TEMPLATE_SETS)}")
    return tuple(json.loads((resources.files(__package__) / "templates" / f"{name}.json").read_text(encoding="utf-8")))


def prompt_name(name: str) -> str:
    """The part of a class name that is prompted: of synonyms ("rug, carpet") only the first, as CAT-Seg does."""
    return name.strip().split(", ")[0].strip()


def fill(template: str, name: str) -> str:
    """The prompt for a class: `prompt_name(name)` in every slot of the template.

    Raises:
        UserError: The template has no slot.
    """
    if SLOT not in template:
        raise UserError(f"the template {template!r} has no slot for the class name; write {SLOT} where it belongs")
    return template.replace(SLOT, prompt_name(name))


def check_names(
    names: Sequence[str],
    tokenizer: Tokenizer,
    templates: Sequence[str] = PAPER,
    context_length: int = CONTEXT_LENGTH,
) -> tuple[str, ...]:
    """The class names, stripped, if each can be told from the others and its prompts fit the text tower.

    Args:
        names: T class names.
        tokenizer: Counts the tokens of the filled prompts.
        templates: Templates the names will fill.
        context_length: Tokens in a row of the text tower, start and end included.

    Returns:
        The T names without outer whitespace, in the given order.

    Raises:
        UserError: There is no name; a name is empty, appears twice (case and spacing do not count, as the tokenizer
            drops them), holds a token reserved for the start or end of a prompt, or makes a prompt too long.
    """
    stripped = tuple(name.strip() for name in names)
    if not stripped:
        raise UserError("there is no class name; give at least one")
    first_place: dict[str, int] = {}
    for place, name in enumerate(stripped, start=1):
        ids = tokenizer.encode(prompt_name(name))
        if not ids:
            raise UserError(f"class name {place} of {len(stripped)}, {name!r}, is empty; remove it or give it a text")
        if START_ID in ids or END_ID in ids:
            raise UserError(f"the class name {name!r} holds a token reserved for the ends of a prompt; remove it")
        earlier = first_place.setdefault(" ".join(name.lower().split()), place)
        if earlier != place:
            raise UserError(f"the class name {name!r} appears twice, at places {earlier} and {place}; keep one of them")
        _check_length(name, tokenizer, templates, context_length)
    return stripped


def _check_length(name: str, tokenizer: Tokenizer, templates: Sequence[str], context_length: int) -> None:
    longest = max(tokenizer.length(fill(template, name)) for template in templates)
    if longest > context_length:
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise UserError(
            f"the class name {shown!r} makes a prompt of {longest} tokens and only {context_length} fit; "
            f"shorten it by {longest - context_length} tokens or more"
        )


def parse_names(text: str) -> tuple[str, ...]:
    """Class names from a command line.

    Args:
        text: Names separated by commas ("red circle, grass"), or a file: `@path`, or a path that ends in .txt or
            .json. A .json file holds a list of names, any other file one name per line (where a name may hold
            commas). Blank names are dropped.

    Returns:
        The names without outer whitespace, unchecked (see `check_names`).

    Raises:
        UserError: No name is left, or the file cannot be read as described.
    """
    if text.startswith("@"):
        found, source = _read_names(Path(text[1:])), text[1:]
    elif text.lower().endswith(NAME_FILES):
        found, source = _read_names(Path(text)), text
    else:
        found, source = text.split(","), "the list of class names"
    names = tuple(name.strip() for name in found if name.strip())
    if not names:
        raise UserError(f"{source} holds no class name; give at least one")
    return names


def _read_names(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark first
    except UnicodeDecodeError as error:
        raise UserError(f"the file of class names {path} is not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the file of class names {path} cannot be read ({reason}); check the path") from error
    if path.suffix.lower() != ".json":
        return content.splitlines()
    try:
        names = json.loads(content)
    except ValueError as error:
        raise UserError(f"the file of class names {path} is not valid JSON ({error}); mend it") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f'the file of class names {path} must hold a JSON list of texts, as ["cat", "dog"]')
    return names


def prompt_tokens(
    names: Sequence[str], templates: Sequence[str] = PAPER, context_length: int = CONTEXT_LENGTH
) -> Int[np.ndarray, "names templates length"]:
    """Rows of token ids for every class in every template, cut to the longest row's length in steps of 8.

    The text tower is causal and is read at the end token, so the padding that is cut off changes nothing; the step
    keeps the number of shapes, and so of compiled programs, small.
    """
    rows = Tokenizer().tokenize([fill(template, name) for name in names for template in templates], context_length)
    return cut_padding(rows, context_length).reshape(len(names), len(templates), -1)


def cut_padding(rows: Int[np.ndarray, "n length"], context_length: int = CONTEXT_LENGTH) -> Int[np.ndarray, "n short"]:
    """The rows up to the last end token among them, in steps of 8."""
    longest = int(rows.argmax(axis=1).max()) + 1  # the end token has the largest id
    return rows[:, : min(-(-longest // LENGTH_STEP) * LENGTH_STEP, context_length)]

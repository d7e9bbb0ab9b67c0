"""Class names and the prompts made of them: template sets, and the checks on names a user typed."""

import html
import json
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists import parse_names as parse_names  # part of this page: names as they are typed
from dinov3seg_jax.text.tips_tokenizer import ASCII_LOWER
from dinov3seg_jax.text.tokenizer import CONTEXT_LENGTH, Tokenizer
from dinov3seg_jax.text.tokenizers import TowerTokenizer, open_tokenizer
from dinov3seg_jax.text.vocabularies import is_published

SLOT = "{}"
PAPER = ("A photo of a {} in the scene",)
TEMPLATE_SETS = ("paper", "imagenet_80", "tcl_9", "cafedino_10")
LENGTH_STEP = 8
SHOWN = 60  # names of a list; of a longer one the first and the last
CLIP = Tokenizer()
DIVIDERS = ";；|｜，、"
JOINERS = "\u200c\u200d"  # of letters in Persian and Indian scripts, and of emoji


def load_templates(name: str) -> tuple[str, ...]:
    """A named template set.

    Args:
        name: "paper", the one prompt of the method (docs/method.md §1), or "imagenet_80", CLIP's 80 prompts, which
            dinov3.txt's zero-shot mode averages (docs/method.md §8), "tcl_9", TCL's 9, which TIPSv2's does, or
            "cafedino_10", those of CAFe-DINO's evaluation.

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


def spoken_name(name: str) -> str:
    """The same without what no tokenizer makes a difference of: case of ASCII's letters, and spacing."""
    return " ".join(prompt_name(name).translate(ASCII_LOWER).split())


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
    tokenizer: TowerTokenizer,
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
        UserError: There is no name; a name is empty, holds a character that nobody sees or a sign that divides names,
            appears twice or makes the same prompt as another (case, spacing and other names after a comma do not
            count), holds a token reserved for the start or end of a prompt, is all unknown to the
            tokenizer, or makes a prompt too long. In published
            lists (see `vocabularies`) names may share a prompt, as scores that compare with others need them all.
    """
    stripped = tuple(name.strip() for name in names)
    if not stripped:
        raise UserError("there is no class name; give at least one")
    first_place: dict[tuple[int, ...], int] = {}
    for place, name in enumerate(stripped, start=1):
        ids = tuple(tokenizer.encode(prompt_name(name)))
        if not ids:
            raise UserError(f"class name {place} of {len(stripped)}, {name!r}, is empty; remove it or give it a text")
        if tokenizer.reserved.intersection(ids):
            raise UserError(f"the class name {name!r} holds a token reserved for the ends of a prompt; remove it")
        if not tokenizer.knows(prompt_name(name)):
            raise UserError(
                f"the class name {name!r} holds no sign that the model's tokenizer knows; name the class in English"
            )
        _check_signs(name, f"class name {place} of {len(stripped)}, {_shortened(name)},")
        earlier = first_place.setdefault(ids, place)
        if earlier != place and not is_published(names):
            _refuse_twin(stripped, earlier, place)
        _check_length(name, tokenizer, templates, context_length)
    return stripped


def understood(names: Iterable[str]) -> str:
    """One line that shows class names as they were understood."""
    listed = list(names)
    shown = [f'"{name}" (asked as "{prompt_name(name)}")' if ", " in name else name for name in listed]
    if len(shown) > SHOWN:
        shown = [*shown[: SHOWN - 2], f"... {len(shown) - SHOWN + 1} more ...", shown[-1]]
    return f"{len(listed)} {'class' if len(listed) == 1 else 'classes'}: {', '.join(shown)}"


def _check_signs(name: str, what: str) -> None:
    hidden = next(
        (letter for letter in name if unicodedata.category(letter) in ("Cc", "Cf") and letter not in JOINERS), ""
    )
    if hidden in ("\n", "\r", "\t"):
        raise UserError(f"{what} goes over several lines or columns; give each class by itself")
    if hidden:
        raise UserError(f"{what} holds a character that nobody sees (U+{ord(hidden):04X}); type the name anew")
    if sign := next((sign for sign in html.unescape(name) if sign in DIVIDERS), ""):
        raise UserError(
            f"{what} holds '{sign}', which divides names; give each class by itself, and other names of one class "
            "after a comma and a blank"
        )
    if name and not any(unicodedata.category(letter)[0] in "LNS" for letter in name):
        raise UserError(f"{what} holds no letter or digit; remove it or give it a name")


def _refuse_twin(names: Sequence[str], earlier: int, later: int) -> None:
    first, second = names[earlier - 1], names[later - 1]
    if " ".join(first.lower().split()) == " ".join(second.lower().split()):
        raise UserError(f"the class name {second!r} appears twice, at places {earlier} and {later}; keep one of them")
    why = ", as only the first of several names is asked" if ", " in first + second else ""
    raise UserError(
        f"the class names {first!r} and {second!r}, at places {earlier} and {later}, are asked alike, as "
        f"'{prompt_name(second)}'{why}, so that the second can never win; keep one, or name it otherwise"
    )


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def _check_length(name: str, tokenizer: TowerTokenizer, templates: Sequence[str], context_length: int) -> None:
    longest = max(tokenizer.length(fill(template, name)) for template in templates)
    if longest > context_length:
        raise UserError(
            f"the class name {_shortened(name)} makes a prompt of {longest} tokens and only {context_length} fit; "
            f"shorten it by {longest - context_length} tokens or more"
        )


def prompt_tokens(
    names: Sequence[str],
    templates: Sequence[str] = PAPER,
    context_length: int = CONTEXT_LENGTH,
    tokenizer: TowerTokenizer = CLIP,
) -> Int[np.ndarray, "names templates length"]:
    """Rows of token ids for every class in every template, cut to the longest row's length in steps of 8.

    What fills a row up changes nothing of its embedding; the step keeps the number of shapes, and so of compiled
    programs, small.
    """
    rows = tokenizer.tokenize([fill(template, name) for name in names for template in templates], context_length)
    return cut_padding(rows, context_length, tokenizer).reshape(len(names), len(templates), -1)


def training_prompts(names: Sequence[str], config: Config) -> Int[np.ndarray, "n length"]:
    """What a run is trained to find: each class in the first template.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    model, templates = config.model, config.inference.templates[:1]
    return prompt_tokens(names, templates, model.text.context_length, open_tokenizer(model))[:, 0]


def cut_padding(
    rows: Int[np.ndarray, "n length"], context_length: int = CONTEXT_LENGTH, tokenizer: TowerTokenizer = CLIP
) -> Int[np.ndarray, "n short"]:
    """The rows up to the end of the longest, in steps of 8."""
    longest = int(tokenizer.ends(rows).max())
    return rows[:, : min(-(-longest // LENGTH_STEP) * LENGTH_STEP, context_length)]

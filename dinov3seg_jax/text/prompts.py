"""Class names and the prompts made of them: template sets, and the checks on names a user typed."""

import html
import json
import unicodedata
from collections.abc import Sequence
from importlib import resources

import numpy as np
from jaxtyping import Int

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists import ClassList, NamedClass, Names
from dinov3seg_jax.text.class_lists import parse_names as parse_names  # part of this page: names as they are typed
from dinov3seg_jax.text.class_lists.named import SLOT, prompt_name
from dinov3seg_jax.text.class_lists.named import spoken_name as spoken_name  # part of this page, too
from dinov3seg_jax.text.tokenizer import CONTEXT_LENGTH, Tokenizer
from dinov3seg_jax.text.tokenizers import TowerTokenizer, open_tokenizer
from dinov3seg_jax.text.vocabularies import is_published

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


def fill(template: str, name: str) -> str:
    """The prompt for a class: `prompt_name(name)` in every slot of the template.

    Raises:
        UserError: The template has no slot.
    """
    if SLOT not in template:
        raise UserError(f"the template {template!r} has no slot for the class name; write {SLOT} where it belongs")
    return template.replace(SLOT, prompt_name(name))


def prompts_of(name: str, prompt: str, templates: Sequence[str]) -> tuple[str, ...]:
    """What is asked for one name of a class: its own prompt, or the filled templates."""
    return (prompt.replace(SLOT, prompt_name(name)),) if prompt else tuple(fill(one, name) for one in templates)


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
    check_asked(ClassList(tuple(NamedClass((name,)) for name in stripped)), tokenizer, templates, context_length)
    return stripped


def check_asked(
    asked: ClassList, tokenizer: TowerTokenizer, templates: Sequence[str] = PAPER, context_length: int = CONTEXT_LENGTH
) -> None:
    """Refuse what cannot be asked, as `check_names` does; a name with a prompt of its own is judged by that.

    Raises:
        UserError: as there; also where a prompt or a display name holds what no name may, or a name of the background
            is a class's, too.
    """
    if not asked.classes:
        raise UserError("there is no class name; give at least one")
    classes = (*asked.classes, *asked.background)
    names = [(name, number) for number, one in enumerate(classes) for name in one.names]
    published = asked.is_plain and is_published(asked.names)
    first_place: dict[tuple[bool, tuple[int, ...]], int] = {}
    for place, (name, number) in enumerate(names, start=1):
        one = classes[number]
        what = f"class name {place} of {len(names)}, {_shortened(name)},"
        if not tokenizer.encode(prompt_name(name)):
            raise UserError(f"class name {place} of {len(names)}, {name!r}, is empty; remove it or give it a text")
        _check_tokens(prompt_name(name), f"the class name {name!r}", tokenizer)
        _check_signs(name, what)
        asks = prompts_of(name, one.prompt, templates)
        if one.prompt:
            _check_tokens(asks[0], f"the prompt {_shortened(one.prompt)}", tokenizer)
            _check_hidden(one.prompt, f"the prompt of {what}")
        _check_hidden(one.display, f"the display name of {what}")
        ids = tokenizer.encode(asks[0] if one.prompt else prompt_name(name))
        earlier = first_place.setdefault((bool(one.prompt), tuple(ids)), place)
        if names[earlier - 1][1] != number and not published:
            _refuse_twin([name for name, _ in names], earlier, place, one.prompt, number >= len(asked.classes))
        _check_length(name, asks, tokenizer, context_length)


def understood(names: Names | ClassList) -> str:
    """One line that shows what is asked, as it was understood."""
    asked = ClassList.of(names)
    count = f"{len(asked.classes)} {'class' if len(asked.classes) == 1 else 'classes'}"
    parts = [f"{count}: {_listed(asked.classes)}"]
    if asked.background:
        parts.append(f"background: {_listed(asked.background)}")
    if asked.has_unknown:
        parts.append(f"{asked.unknown}: below {asked.min_confidence:g}")
    return "; ".join(parts)


def _listed(classes: Sequence[NamedClass]) -> str:
    shown = list(map(described, classes))
    if len(shown) > SHOWN:
        shown = [*shown[: SHOWN - 2], f"... {len(shown) - SHOWN + 1} more ...", shown[-1]]
    return ", ".join(shown)


def described(one: NamedClass) -> str:
    """What a class is called, and how it is asked where that is something else."""
    asks = " | ".join(prompts_of(name.names[0], one.prompt, (SLOT,))[0] for name in one.apart())
    if one.shown == asks:
        return asks
    called = f'"{one.shown}"' if ", " in one.shown else one.shown
    return f'{called} (asked as "{asks}")'


def _check_tokens(text: str, what: str, tokenizer: TowerTokenizer) -> None:
    if tokenizer.reserved.intersection(tokenizer.encode(text)):
        raise UserError(f"{what} holds a token reserved for the ends of a prompt; remove it")
    if not tokenizer.knows(text):
        raise UserError(f"{what} holds no sign that the model's tokenizer knows; name the class in English")


def _check_hidden(text: str, what: str) -> None:
    hidden = next(
        (letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf") and letter not in JOINERS), ""
    )
    if hidden in ("\n", "\r", "\t"):
        raise UserError(f"{what} goes over several lines or columns; give each class by itself")
    if hidden:
        raise UserError(f"{what} holds a character that nobody sees (U+{ord(hidden):04X}); type the name anew")


def _check_signs(name: str, what: str) -> None:
    _check_hidden(name, what)
    if sign := next((sign for sign in html.unescape(name) if sign in DIVIDERS), ""):
        raise UserError(
            f"{what} holds '{sign}', which divides names; give each class by itself, and other names of one class "
            "after a comma and a blank"
        )
    if name and not any(unicodedata.category(letter)[0] in "LNS" for letter in name):
        raise UserError(f"{what} holds no letter or digit; remove it or give it a name")


def _refuse_twin(names: Sequence[str], earlier: int, later: int, prompt: str, in_background: bool) -> None:
    first, second = names[earlier - 1], names[later - 1]
    if in_background:
        raise UserError(
            f"the name {second!r} of the background is asked as {first!r} is, so that nothing says whose a pixel is; "
            "leave one of them out"
        )
    if prompt:
        raise UserError(
            f"the classes {first!r} and {second!r} have one prompt, {_shortened(prompt)}; give each its own"
        )
    if " ".join(first.lower().split()) == " ".join(second.lower().split()):
        raise UserError(f"the class name {second!r} appears twice, at places {earlier} and {later}; keep one of them")
    why = ", as only the first of several names is asked" if ", " in first + second else ""
    raise UserError(
        f"the class names {first!r} and {second!r}, at places {earlier} and {later}, are asked alike, as "
        f"'{prompt_name(second)}'{why}, so that the second can never win; keep one, or name it otherwise"
    )


def _shortened(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def _check_length(name: str, prompts: Sequence[str], tokenizer: TowerTokenizer, context_length: int) -> None:
    longest = max(map(tokenizer.length, prompts))
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
    """`tokens_of` for every class in every template."""
    return tokens_of([prompts_of(name, "", templates) for name in names], context_length, tokenizer)


def tokens_of(
    prompts: Sequence[Sequence[str]], context_length: int = CONTEXT_LENGTH, tokenizer: TowerTokenizer = CLIP
) -> Int[np.ndarray, "names templates length"]:
    """Rows of token ids, equally many for each name, cut to the longest row's length in steps of 8.

    What fills a row up changes nothing of its embedding; the step keeps the number of shapes, and so of compiled
    programs, small.
    """
    rows = tokenizer.tokenize([prompt for of_name in prompts for prompt in of_name], context_length)
    return cut_padding(rows, context_length, tokenizer).reshape(len(prompts), len(prompts[0]), -1)


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

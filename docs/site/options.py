"""The reference of the config: one row for each option, read off the dataclasses of `dinov3seg_jax/config.py`."""

import ast
import dataclasses
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from dinov3seg_jax import config
from docs.site.links import linked

KINDS = {
    "Positive": "whole number, 1 or more",
    "NonNegative": "whole number, 0 or more",
    "Integer": "whole number",
    "From0": "number, 0 or more",
    "Above0": "number above 0",
    "Fraction": "number from 0, below 1",
    "Probability": "number from 0 to 1",
    "Flag": "`True` or `False`",
    "Finetune": "`attention`, `none`, `last_blocks`, `full`, `lora`, `backbone`, `head`",
    "MixedConfig": "options of `data.train`, and `weight`",
    "Names": "names, as in `a,b`",
    "Prompts": "texts, at least one",
    "Trackers": "some of `tensorboard`, `wandb`, `mlflow`, as in `a,b`",
    "str": "text",
}


class Option(NamedTuple):
    """One option, as config.py has it."""

    name: str  # of its dataclass's field
    kind: str  # which values it takes, in words
    default: Any
    meaning: str  # the comment beside it; empty if there is none


def page() -> str:
    """All sections of the config as Markdown: a heading, what the section is, and a table."""
    return "\n\n".join(_section(path, section) for path, section in sections(config.Config()))


def sections(section: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A config and the sections inside it, each with its dotted name; the outermost has none."""
    yield path, section
    for field in dataclasses.fields(section):
        inner = getattr(section, field.name)
        if dataclasses.is_dataclass(inner):
            yield from sections(inner, f"{path}.{field.name}".lstrip("."))


def options(section: Any) -> list[Option]:
    """The options of one section, without the sections inside it."""
    source = inspect.getsource(type(section))
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]  # type: ignore[attr-defined]
    return [
        Option(node.target.id, _kind(node.annotation), default, comments.get(node.end_lineno, ""))  # type: ignore[union-attr, arg-type]
        for node in fields
        if not dataclasses.is_dataclass(default := getattr(section, node.target.id))  # type: ignore[union-attr]
    ]


def _section(path: str, section: Any) -> str:
    title = f"`{path}`" if path else "The run itself"
    prefix = f"{path}." if path else ""
    rows = [
        f"| `{prefix}{option.name}` | {option.kind} | `{_written(option.default)}` | {linked(option.meaning)} |"
        for option in options(section)
    ]
    table = ["| option | values | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {title}", "", linked(inspect.cleandoc(section.__doc__ or "")), "", *(table if rows else [])])


def _kind(annotation: ast.expr) -> str:
    if isinstance(annotation, ast.Name):
        return KINDS[annotation.id]
    assert isinstance(annotation, ast.Subscript)
    outer = ast.unparse(annotation.value)
    inner = annotation.slice
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if outer == "Literal":
        return ", ".join(f"`{part.value}`" for part in parts)  # type: ignore[attr-defined]
    if outer == "Annotated":
        return _kind(parts[0])
    several = isinstance(parts[-1], ast.Constant)  # an ellipsis
    return f"any number of: {_kind(parts[0])}" if several else f"{len(parts)} of: {_kind(parts[0])}"


def _written(default: Any) -> str:
    return "(" + ", ".join(map(str, default)) + ")" if isinstance(default, tuple) else str(default) or '""'

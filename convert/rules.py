"""The engine behind the rule tables: official tensors in, our flat parameters out, nothing lost and nothing missing."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from convert.transforms import Transform, keep
from dinov3seg_jax.errors import UserError

LISTED = 20  # names shown of a long list


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a table: where a tensor goes whose whole key matches `pattern`.

    `targets` may quote the pattern's named groups, `\\g<name>`. A group named `layer` numbers blocks that we keep
    stacked: their arrays are joined on a leading axis.
    """

    pattern: str
    targets: tuple[str, ...]  # none: the tensor is dropped
    transform: Transform = keep  # one array per target, in order
    mask: str = ""  # key of a tensor to multiply by first, where the source has it; it may quote groups too
    layers: tuple[int, ...] | None = None  # official numbers of the stacked blocks; None: 0, 1, 2, ...


@dataclasses.dataclass(frozen=True)
class Fill:
    """A parameter that the source does not store, found by full match on our name."""

    pattern: str
    values: Callable[[tuple[int, ...]], np.ndarray]  # of a shape


Row = Rule | Fill


def rule(pattern: str, target: str, transform: Transform = keep) -> Rule:
    """A row with one target."""
    return Rule(pattern, (target,), transform)


def drop(pattern: str) -> Rule:
    """A row for tensors that are knowingly left out."""
    return Rule(pattern, ())


def prefixed(rows: Iterable[Row], source: str = "", target: str = "") -> tuple[Row, ...]:
    """Move a table: `source` is a regex put before every key, `target` goes before every one of our names."""
    return tuple(
        Fill(re.escape(target) + row.pattern, row.values)
        if isinstance(row, Fill)
        else dataclasses.replace(
            row, pattern=f"(?:{source})(?:{row.pattern})", targets=tuple(target + name for name in row.targets)
        )
        for row in rows
    )


def apply_rules(
    source: Mapping[str, np.ndarray], rows: Sequence[Row], expected: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Convert a state dict.

    Args:
        source: official key -> array, of any float type.
        rows: the table of this source.
        expected: our name -> shape, of every parameter to be filled.

    Returns:
        Our name -> float32 array of the shape expected, for every name in `expected`.

    Raises:
        UserError: a source tensor is read by no row or holds a NaN, a parameter is left without a value or gets two,
            or a shape differs. It names the tensors and the parameters.
    """
    parts, read = _gather(source, [row for row in rows if isinstance(row, Rule)])
    parameters = {name: _join(name, layers) for name, layers in parts.items()}
    for fill in (row for row in rows if isinstance(row, Fill)):
        for name in expected.keys() - parameters.keys():
            if re.fullmatch(fill.pattern, name):
                parameters[name] = fill.values(tuple(expected[name]))
    for name, shape in expected.items():  # such as zero storage tokens
        if 0 in shape and name not in parameters:
            parameters[name] = np.zeros(shape, np.float32)
    _refuse_misfits(source.keys() - read, parameters, expected)
    return parameters


def _gather(
    source: Mapping[str, np.ndarray], rules: Sequence[Rule]
) -> tuple[dict[str, dict[int | None, np.ndarray]], set[str]]:
    """Transformed arrays by target and position on the stack (None: not stacked), and the keys that were read."""
    parts: dict[str, dict[int | None, np.ndarray]] = defaultdict(dict)
    read = set()
    for key in source:
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, key))]
        if not matches:
            continue
        if len(matches) > 1:
            raise ValueError(f"{key} is read by two rows: {matches[0][0].pattern} and {matches[1][0].pattern}")
        ((row, match),) = matches
        read.add(key)
        if not row.targets:
            continue
        array = np.asarray(source[key]).astype(np.float32)
        mask_key = match.expand(row.mask)
        if mask_key in source:
            read.add(mask_key)
            array = array * np.asarray(source[mask_key]).astype(np.float32)
        if np.isnan(array).any():
            raise UserError(f"tensor '{key}' of the source holds a NaN; the file is damaged or was never initialised.")
        position = _position(row, match, key)
        for target, part in zip(row.targets, row.transform(array), strict=False):
            layers = parts[match.expand(target)]
            if position in layers:
                raise UserError(f"tensor '{key}' of the source fills '{match.expand(target)}' a second time.")
            layers[position] = part
    return parts, read


def _position(row: Rule, match: re.Match[str], key: str) -> int | None:
    if "layer" not in match.re.groupindex:
        return None
    number = int(match["layer"])
    if row.layers is None:
        return number
    if number not in row.layers:
        raise UserError(f"tensor '{key}' of the source belongs to block {number}, which the model does not have.")
    return row.layers.index(number)


def _join(name: str, layers: dict[int | None, np.ndarray]) -> np.ndarray:
    if None in layers:
        return layers[None]
    numbers = sorted(number for number in layers if number is not None)
    shapes = {layer.shape for layer in layers.values()}
    if numbers != list(range(len(numbers))) or len(shapes) > 1:
        raise UserError(
            f"the source's blocks for '{name}' are {numbers} with shapes {shapes}: some are missing or odd."
        )
    return np.stack([layers[number] for number in numbers])


def _refuse_misfits(unread: set[str], parameters: dict[str, np.ndarray], expected: Mapping[str, Sequence[int]]) -> None:
    wrong = [
        f"{name} {parameters[name].shape} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in parameters and parameters[name].shape != tuple(shape)
    ]
    complaints = {
        "tensors that nothing reads": unread,
        "parameters without a tensor": expected.keys() - parameters.keys(),
        "parameters that the model lacks": parameters.keys() - expected.keys(),
        "wrong shapes": wrong,
    }
    found = [f"{what}: {_listing(names)}" for what, names in complaints.items() if names]
    if found:
        raise UserError(f"the source does not fit the model; {'; '.join(found)}.")


def _listing(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - LISTED
    return ", ".join(ordered[:LISTED]) + (f" and {rest} more" if rest > 0 else "")

"""The engine behind the rule tables: official tensors in, our flat parameters out, nothing lost and nothing missing.

`plan_rules` decides from names and shapes alone; `carry_out` then reads one tensor at a time.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from dinov3seg_jax.convert.tables.transforms import Transform, keep
from dinov3seg_jax.errors import UserError

RULES_VERSION = 1  # raised whenever a table or a transform changes what comes out
LISTED = 20  # names shown of a long list

Shape = tuple[int, ...]
Place = tuple[str, int | None]  # our name, and the position on its stack of blocks; None: not stacked


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
    values: Callable[[Shape], np.ndarray]  # of a shape


Row = Rule | Fill


@dataclasses.dataclass(frozen=True)
class Reading:
    """One tensor of the source and the places that it fills."""

    key: str
    mask: str  # key of a tensor to multiply by; empty: none
    transform: Transform
    places: tuple[Place, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion that is known to come out whole, but for the values."""

    readings: tuple[Reading, ...]
    fills: dict[str, Callable[[Shape], np.ndarray]]
    dropped: tuple[str, ...]  # keys knowingly left out
    shapes: dict[str, Shape]  # of every parameter


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
    """Convert a state dict that is in memory.

    Args:
        source: official key -> array, of any float type.
        rows: the table of this source.
        expected: our name -> shape, of every parameter to be filled.

    Returns:
        Our name -> float32 array of the shape expected, for every name in `expected`.

    Raises:
        UserError: as for `plan_rules` and `carry_out`.
    """
    plan = plan_rules({key: np.shape(value) for key, value in source.items()}, rows, expected)
    parameters = {name: np.empty(shape, np.float32) for name, shape in plan.shapes.items()}
    for (name, position), values in carry_out(plan, source.__getitem__):
        parameters[name][... if position is None else position] = values
    return parameters


def plan_rules(source: Mapping[str, Shape], rows: Sequence[Row], expected: Mapping[str, Sequence[int]]) -> Plan:
    """Decide where every tensor goes, from names and shapes.

    Args:
        source: official key -> shape.
        rows: the table of this source.
        expected: our name -> shape, of every parameter to be filled.

    Raises:
        UserError: a source tensor is read by no row, a parameter is left without a value or gets two, or a shape
            differs. It names the tensors and the parameters.
    """
    readings, read, dropped = [], set(), []
    found: dict[str, dict[int | None, Shape]] = defaultdict(dict)
    for key, shape in source.items():
        matched = _match(key, [row for row in rows if isinstance(row, Rule)])
        if matched is None:
            continue
        row, match = matched
        read.add(key)
        if not row.targets:
            dropped.append(key)
            continue
        mask = match.expand(row.mask)
        if mask in source:
            read.add(mask)
        position = _position(row, match, key)
        places = []
        for target, part in zip(row.targets, _shapes_after(row.transform, key, shape), strict=False):
            name = match.expand(target)
            if position in found[name]:
                raise UserError(
                    f"tensor '{key}' of the source fills '{name}' a second time; give the tensors of one model."
                )
            found[name][position] = part
            places.append((name, position))
        readings.append(Reading(key, mask if mask in source else "", row.transform, tuple(places)))
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    fills = _fills([row for row in rows if isinstance(row, Fill)], shapes, found)
    _refuse_misfits(source.keys() - read, found, shapes, fills)
    return Plan(tuple(readings), fills, tuple(dropped), shapes)


def carry_out(plan: Plan, read: Callable[[str], np.ndarray]) -> Iterator[tuple[Place, np.ndarray]]:
    """Read the source, one tensor at a time, and give every part of every parameter once, as float32.

    Args:
        plan: of `plan_rules`.
        read: gives a tensor by its key.

    Raises:
        UserError: a tensor holds a NaN or an infinite value.
    """
    for reading in plan.readings:
        array = np.asarray(read(reading.key)).astype(np.float32, copy=False)
        if reading.mask:
            array = array * np.asarray(read(reading.mask)).astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(
                f"tensor '{reading.key}' of the source holds a NaN or an infinite value; "
                "the file is damaged or was never initialised."
            )
        yield from zip(reading.places, reading.transform(array), strict=True)
    for name, values in plan.fills.items():
        yield (name, None), values(plan.shapes[name])


def _match(key: str, rules: Sequence[Rule]) -> tuple[Rule, re.Match[str]] | None:
    matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, key))]
    if len(matches) > 1:
        raise ValueError(f"{key} is read by two rows: {matches[0][0].pattern} and {matches[1][0].pattern}")
    return matches[0] if matches else None


def _position(row: Rule, match: re.Match[str], key: str) -> int | None:
    if "layer" not in match.re.groupindex:
        return None
    number = int(match["layer"])
    if row.layers is None:
        return number
    if number not in row.layers:
        raise UserError(f"tensor '{key}' of the source belongs to block {number}, which the model does not have.")
    return row.layers.index(number)


def _shapes_after(transform: Transform, key: str, shape: Shape) -> list[Shape]:
    """What a transform makes of a shape, found on an array that takes no memory."""
    try:
        return [part.shape for part in transform(np.broadcast_to(np.float32(0), shape))]
    except ValueError:
        raise UserError(
            f"tensor '{key}' of the source has the shape {shape}, which no model of this kind has; use another file."
        ) from None


def _fills(
    rows: Iterable[Fill], shapes: Mapping[str, Shape], found: Mapping[str, object]
) -> dict[str, Callable[[Shape], np.ndarray]]:
    fills: dict[str, Callable[[Shape], np.ndarray]] = {}
    for name, shape in shapes.items():
        values = next((row.values for row in rows if re.fullmatch(row.pattern, name)), None)
        if name not in found and (values or 0 in shape):  # such as zero storage tokens
            fills[name] = values or np.zeros
    return fills


def _refuse_misfits(
    unread: set[str],
    found: Mapping[str, Mapping[int | None, Shape]],
    expected: Mapping[str, Shape],
    fills: Mapping[str, object],
) -> None:
    got = {_place_name(name, at): shape for name, places in found.items() for at, shape in places.items()}
    wanted: dict[str, Shape] = {}
    for name, shape in expected.items():
        stacked = name in found and None not in found[name]
        positions: Iterable[int | None] = range(shape[0]) if stacked and shape else [None]
        wanted |= {_place_name(name, at): shape if at is None else shape[1:] for at in positions if name not in fills}
    complaints = {
        "tensors that nothing reads": unread,
        "parameters without a tensor": wanted.keys() - got.keys(),
        "parameters that the model lacks": got.keys() - wanted.keys(),
        "wrong shapes": [
            f"{name} {got[name]} instead of {wanted[name]}"
            for name in wanted.keys() & got.keys()
            if got[name] != wanted[name]
        ],
    }
    listed = [f"{what}: {_listing(names)}" for what, names in complaints.items() if names]
    if listed:
        raise UserError(
            f"the source does not fit the model; {'; '.join(listed)}; "
            "give all tensors of one model and no other (--take NAME reads those under NAME)."
        )


def _place_name(name: str, position: int | None) -> str:
    return name if position is None else f"{name} of block {position}"


def _listing(names: Iterable[str]) -> str:
    ordered = sorted(names)
    rest = len(ordered) - LISTED
    return ", ".join(ordered[:LISTED]) + (f" and {rest} more" if rest > 0 else "")

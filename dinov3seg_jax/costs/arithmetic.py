"""What the operations of a compiled program compute, read off its text: products, and work of the vector unit.

Products are counted as XLA counts them: taps that fall on padding or between the cells of a dilated input are none.
Sides that do not fill the matrix unit are counted as if they did: a product of (m, k) and (k, n) takes as long as one
of k and n rounded up to the unit's side, and of at least so many rows; whichever of the two inputs stays in the unit.
All taps of a convolution are taken as one long k, which is the best that a compiler can do.

The rest is an estimate: every operation on an element of a padded array is one operation of the vector unit, or as many
as `WEIGHTS` says. What only moves elements counts nothing.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dinov3seg_jax.costs.hlo import Instruction, Program

ROWS = 8  # of a register: rows of a product come in so many

# Operations of the vector unit for an element, where not one: our estimate, of polynomials and of corrected hardware
# approximations. 0: elements are moved or renamed.
WEIGHTS = {
    "exponential": 4,
    "log": 4,
    "tanh": 4,
    "logistic": 6,
    "exponential-minus-one": 6,
    "log-plus-one": 6,
    "rsqrt": 4,
    "sqrt": 4,
    "cbrt": 6,
    "divide": 6,
    "remainder": 8,
    "power": 12,
    "erf": 20,
    "sine": 20,
    "cosine": 20,
    "tan": 20,
    "atan2": 20,
}
ELEMENTWISE = {
    *("abs", "add", "and", "ceil", "clamp", "compare", "convert", "floor", "is-finite", "maximum", "minimum"),
    *("multiply", "negate", "not", "or", "round-nearest-afz", "round-nearest-even", "select", "shift-left"),
    *("shift-right-arithmetic", "shift-right-logical", "sign", "subtract", "xor"),
}
TRANSCENDENTAL = 10  # operations in a kernel for each transcendental that it says it does, with what goes around it
KERNEL = 'custom_call_target="tpu_custom_call"'
PASSES = {"highest": 6, "high": 3}  # of a product of float32 over the unit, which takes bfloat16

_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_SHAPE = re.compile(r"^\(?([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Work:
    """Operations of one run of an operation."""

    flops: float = 0  # of products, two for each multiply-add
    filled: float = 0  # the same, sides rounded up to the matrix unit, and as often as float32 passes through it
    vector: float = 0
    silent: int = 0  # kernels that do not say what they compute

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops,
            self.filled + other.filled,
            self.vector + other.vector,
            self.silent + other.silent,
        )


def work_of(program: Program, instruction: Instruction, known: Mapping[str, Instruction], side: int) -> Work:
    """What an operation computes, those inside a fusion included.

    Args:
        program: that it is part of.
        instruction: no loop, call or conditional.
        known: the operations of its computation by their names.
        side: of the matrix unit.
    """
    opcode = instruction.opcode
    if opcode in ("fusion", "async-start"):
        bodies = [program.computations.get(name, {}) for name in instruction.called]
        inner = [work_of(program, one, body, side) for body in bodies for one in body.values()]
        return sum(inner, Work())
    if opcode in ("convolution", "dot"):
        return _product(instruction, known, side)
    if opcode == "custom-call":
        return _kernel(instruction) if KERNEL in instruction.attributes else Work()
    if opcode in ("reduce", "reduce-window"):
        return Work(vector=sum(known[name].cells for name in instruction.operands[:1] if name in known))
    if opcode in ELEMENTWISE or opcode in WEIGHTS:
        return Work(vector=WEIGHTS.get(opcode, 1) * instruction.cells)
    return Work()


def _kernel(instruction: Instruction) -> Work:
    said = dict(re.findall(r'"(flops|transcendentals)":"?(\d+)', instruction.attributes))
    if not said:
        return Work(silent=1)
    flops = float(said.get("flops", 0))
    return Work(flops, flops, TRANSCENDENTAL * float(said.get("transcendentals", 0)))


def _product(instruction: Instruction, known: Mapping[str, Instruction], side: int) -> Work:
    shapes = [_shape(known[name].type) for name in instruction.operands[:2] if name in known]
    if len(shapes) < 2:
        return Work()
    left, right = shapes
    if instruction.opcode == "dot":
        products, m, k, n = _of_dot(instruction.attributes, left, right)
    else:
        products, m, k, n = _of_convolution(instruction.attributes, left, right, _shape(instruction.type))
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    passes = PASSES.get(precision[1], 1) if precision and "f32" in _types(instruction, known) else 1
    return Work(2 * products * m * k * n, 2 * products * passes * _filled(m, k, n, side))


def _filled(m: float, k: float, n: float, side: int) -> float:
    def up(length: float, to: int) -> float:
        return math.ceil(length / to) * to

    stays = (up(kept, side) * max(up(rows, ROWS), side) for rows, kept in ((m, n), (n, m)))
    return up(k, side) * min(stays)


def _of_dot(attributes: str, left: list[int], right: list[int]) -> tuple[float, float, float, float]:
    batch = [left[axis] for axis in _axes(attributes, "lhs_batch_dims")]
    summed = [left[axis] for axis in _axes(attributes, "lhs_contracting_dims")]
    products, k = math.prod(batch), math.prod(summed)
    return products, math.prod(left) / max(products * k, 1), k, math.prod(right) / max(products * k, 1)


def _of_convolution(
    attributes: str, left: list[int], right: list[int], out: list[int]
) -> tuple[float, float, float, float]:
    """How many products of which sides: an axis of which each place has a tap of its own only is one of products."""
    labels = _LABELS.search(attributes)
    if labels is None:
        return 0, 0, 0, 0
    window = _WINDOW.search(attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    inputs, kernel, result = labels.groups()
    spatial = sum(letter.isdigit() for letter in kernel)
    products, m, k, n = (
        1.0,
        float(out[result.index("b")]),
        float(right[kernel.index("i")]),
        float(out[result.index("f")]),
    )
    for axis in range(spatial):
        size, places = right[kernel.index(str(axis))], out[result.index(str(axis))]
        taps = _taps(left[inputs.index(str(axis))], places, size, _along(options, axis))
        if size > 1 and taps <= places:
            products *= taps
        else:
            m *= places
            k *= taps / places
    groups = re.search(r"(?:feature|batch)_group_count=(\d+)", attributes)
    if groups:  # each has a share of the outputs of its own
        products *= int(groups[1])
        n /= int(groups[1])
        m /= int(groups[1]) if groups[0].startswith("batch") else 1
    return products, m, k, n


def _along(options: Mapping[str, str], axis: int) -> tuple[int, int, int, int]:
    """Stride, padding before, and the two dilations."""

    def pick(name: str, otherwise: str) -> str:
        return options[name].split("x")[axis] if name in options else otherwise

    before = int(pick("pad", "0_0").split("_")[0])
    return int(pick("stride", "1")), before, int(pick("lhs_dilate", "1")), int(pick("rhs_dilate", "1"))


def _taps(length: int, places: int, size: int, along: tuple[int, int, int, int]) -> float:
    """Pairs of a place and a tap that meet a cell, along one axis."""
    stride, before, dilated, spread = along
    last = (length - 1) * dilated
    if size <= places:
        others, pairs_with, step, each = range(size), places, spread, stride
    else:
        others, pairs_with, step, each = range(places), size, stride, spread
    total = 0
    for one in others:  # of the shorter; for each, count places of the other at start + each * i that meet a cell
        start = one * step - before
        total += sum(0 <= (at := start + each * i) <= last and not at % dilated for i in range(pairs_with))
    return float(total)


def _shape(text: str) -> list[int]:
    found = _SHAPE.match(text)
    return [int(n) for n in found[2].split(",") if n] if found else []


def _types(instruction: Instruction, known: Mapping[str, Instruction]) -> list[str]:
    return [
        found[1] for name in instruction.operands[:2] if name in known and (found := _SHAPE.match(known[name].type))
    ]


def _axes(attributes: str, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
    return [int(axis) for axis in found[1].split(",") if axis] if found else []

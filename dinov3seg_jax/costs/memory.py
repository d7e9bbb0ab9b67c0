"""What a traced function holds in memory at once, read off its jaxpr: no compiler, no device, seconds at any size.

Values live from where they are made to where they are last read, in the order of the trace. Two things that every XLA
compiler does are followed, since without them an estimate is several times too high: what is cheap to compute from
something that is there anyway (elementwise operations, broadcasts, changes of type) is part of what reads it and never
lies in memory; and what is updated stays in its place. `tests/costs/test_memory.py` compares with the compiler.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax.extend import core

VIEWS = {"reshape", "squeeze", "expand_dims", "sharding_constraint", "reshard", "copy", "stop_gradient"}
FUSED = {
    *("add", "add_any", "sub", "mul", "div", "max", "min", "neg", "sign", "abs", "square", "integer_pow", "sqrt"),
    *("rsqrt", "floor", "ceil", "round", "rem", "clamp", "convert_element_type", "bitcast_convert_type", "select_n"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "xor", "shift_left", "shift_right_logical"),
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "sin", "cos", "pow", "is_finite"),
    *("broadcast_in_dim", "iota", "slice", "pad", "concatenate", "transpose", "rev", "dynamic_slice", "gather"),
    *("split", "tile", "stack", "empty2"),
}
# Every kernel that reads one of these computes it for itself.
TRIVIAL = {"convert_element_type", "broadcast_in_dim", "iota", "eq", "ne", "lt", "le", "gt", "ge", "not", "empty2"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin"}
OF_THEIR_OWN = {"scan", "while", "shard_map"}  # whose bodies are programs by themselves
STAYS = {
    *FUSED,
    "scan",
    "while",
    "dynamic_update_slice",
    "scatter",
    "scatter-add",
}  # results take the place of what they update

Described = tuple[tuple[int, ...], Any]  # shape and dtype
PartOf = Callable[[core.JaxprEqn], str]  # the part of the model that an equation belongs to; "" where it is of none


@dataclass(frozen=True)
class Reading:
    """How a jaxpr is read."""

    part_of: PartOf
    known: Mapping[Described, tuple[str, int]] = field(default_factory=dict)  # part and bytes of values like these
    platform: str = ""  # where it runs, as in "cpu"; "": on any that `jax.lax.platform_dependent` does not name


@dataclass
class _Operation:
    name: str
    reads: list[int]
    makes: list[int]
    inside: Counter[str] = field(default_factory=Counter)  # of a loop: what its body holds beside what it is given


def peak(jaxpr: core.Jaxpr, reading: Reading, in_place: int = 0) -> Counter[str]:
    """Bytes by part at the moment when they are most, beside the arguments.

    Args:
        jaxpr: of a function.
        reading: how it is read.
        in_place: so many of the results, the first, take the place of arguments.
    """
    return _Line(reading).most(jaxpr, in_place=in_place)


class _Line:
    """A function, or the body of a loop, as one line of operations; values have numbers."""

    def __init__(self, reading: Reading):
        self.reading = reading
        self.operations: list[_Operation] = []
        self.bytes: list[int] = []
        self.parts: list[str] = []

    def most(self, jaxpr: core.Jaxpr, part: str = "", sliced: Sequence[int] = (), in_place: int = 0) -> Counter[str]:
        """See `peak`; `sliced` are the places of inputs that a loop cuts off for each of its turns."""
        numbers = {variable: self._number("", 0) for variable in (*jaxpr.constvars, *jaxpr.invars)}
        for variable in (jaxpr.invars[place] for place in sliced):
            numbers[variable] = self._new(variable.aval, part)
            self.operations.append(_Operation("slice", [], [numbers[variable]]))
        self._add(jaxpr, numbers, part)
        results = [numbers[variable] for variable in jaxpr.outvars if not isinstance(variable, core.Literal)]
        for number in results[:in_place]:
            self.bytes[number] = 0
        return self._walk(set(results))

    def _number(self, part: str, size: int) -> int:
        self.bytes.append(size)
        self.parts.append(part)
        return len(self.bytes) - 1

    def _new(self, described: Any, part: str) -> int:
        known = self.reading.known.get((described.shape, described.dtype))
        return self._number(*known) if known else self._number(part, array_bytes(described))

    def _add(self, jaxpr: core.Jaxpr, numbers: dict[Any, int], outer: str) -> None:
        for equation in jaxpr.eqns:
            name, part = equation.primitive.name, outer or self.reading.part_of(equation)
            inputs = [
                self._number("", 0) if isinstance(variable, core.Literal) else numbers[variable]
                for variable in equation.invars
            ]
            bodies = self._bodies(equation)
            if name in VIEWS:
                numbers[equation.outvars[0]] = inputs[0]
            elif len(bodies) == 1 and name not in OF_THEIR_OWN:
                results = self._call(bodies[0], inputs, part, recomputes="prevent_cse" in equation.params)
                numbers |= dict(zip(equation.outvars, results, strict=True))
            else:
                held = [_Line(self.reading).most(body, part, _sliced(equation)) for body in bodies]
                makes = [self._new(variable.aval, part) for variable in equation.outvars]
                numbers |= dict(zip(equation.outvars, makes, strict=True))
                inside = max(held, key=Counter.total, default=Counter())
                self.operations.append(_Operation(name, inputs, makes, inside))

    def _call(self, body: core.Jaxpr, inputs: list[int], part: str, recomputes: bool) -> list[int]:
        """Add the operations of a function that is called, or of the branch that is taken; return its results."""
        if recomputes:  # the compiler must see no connection with what was computed before
            self.operations.append(_Operation("barrier", inputs, []))
        numbers = dict(zip(body.invars, inputs[len(inputs) - len(body.invars) :], strict=True))
        numbers |= {variable: self._number("", 0) for variable in body.constvars}
        self._add(body, numbers, part)
        return [self._number("", 0) if isinstance(v, core.Literal) else numbers[v] for v in body.outvars]

    def _bodies(self, equation: core.JaxprEqn) -> list[core.Jaxpr]:
        """Those that may run: of a call, a loop, or a choice; where the platform chooses, what it chooses."""
        params = equation.params
        if equation.primitive.name == "cond":
            branches = [branch.jaxpr for branch in params["branches"]]
            platforms = params.get("branches_platforms")
            if not platforms:
                return branches
            named = [place for place, names in enumerate(platforms) if names and self.reading.platform in names]
            return [branches[named[0] if named else platforms.index(None)]]
        if equation.primitive.name == "while":
            return [params["body_jaxpr"].jaxpr]
        body: Any = params.get("jaxpr", params.get("call_jaxpr"))
        if body is None or equation.primitive.name == "pallas_call":  # whose values are not in the main memory
            return []
        return [getattr(body, "jaxpr", body)]

    def _walk(self, results: set[int]) -> Counter[str]:
        operations = self._needed(results)
        held = self._held(operations, results)
        roots: dict[int, set[int]] = defaultdict(set)  # what of memory is read to compute a value
        order: list[tuple[_Operation, set[int]]] = []
        for operation in operations:
            reads = {root for number in operation.reads for root in (roots[number] if number not in held else {number})}
            for number in operation.makes:
                if number not in held:
                    roots[number] = reads
            if not operation.makes or any(number in held for number in operation.makes):
                order.append((operation, reads))
        last = {number: place for place, (_, reads) in enumerate(order) for number in reads}
        now: Counter[str] = Counter()
        total, best, most = 0, 0, Counter[str]()
        for place, (operation, reads) in enumerate(order):
            made = [number for number in operation.makes if number in held]
            dying = [number for number in reads if last[number] == place and number not in results]
            for number in made:
                if operation.name in STAYS:
                    same = next((old for old in dying if self.bytes[old] == self.bytes[number]), None)
                    if same is not None:
                        dying.remove(same)
                        total -= self.bytes[same]
                        now[self.parts[same]] -= self.bytes[same]
                total += self.bytes[number]
                now[self.parts[number]] += self.bytes[number]
            if total + operation.inside.total() > best:
                best, most = total + operation.inside.total(), now + operation.inside
            for number in dying + [number for number in made if number not in last and number not in results]:
                total -= self.bytes[number]
                now[self.parts[number]] -= self.bytes[number]
        return most

    def _needed(self, results: set[int]) -> list[_Operation]:
        """Without those whose results nobody reads."""
        wanted, kept = set(results), []
        for operation in reversed(self.operations):
            if not operation.makes or wanted.intersection(operation.makes):
                wanted.update(operation.reads)
                kept.append(operation)
        return kept[::-1]

    def _held(self, operations: list[_Operation], results: set[int]) -> set[int]:
        """The values that lie in memory, and what is given.

        A value that is cheap to compute lies there if it is a result, if several kernels read it, or if one does that
        computes nothing on its way (a product, a loop).
        """
        held = set(range(len(self.bytes)))
        needed = set(results)
        kernels: dict[int, set[int]] = defaultdict(set)  # that read a value, or what is computed of it on their way
        for place, operation in reversed(list(enumerate(operations))):
            readers = {place}
            if operation.name in FUSED and not needed.intersection(operation.makes):
                of_all = set().union(*(kernels[number] for number in operation.makes))
                if len(of_all) <= 1 or operation.name in TRIVIAL:
                    held.difference_update(operation.makes)
                    readers = of_all
            for number in operation.reads:
                kernels[number] |= readers
            if operation.name not in FUSED and operation.name not in REDUCTIONS:
                needed.update(operation.reads)
        return held


def array_bytes(described: Any) -> int:
    """Bytes of an array."""
    plain = jnp.issubdtype(described.dtype, jnp.number) or described.dtype == jnp.bool_
    return math.prod(described.shape) * (described.dtype.itemsize if plain else 8)  # else a random key


def _sliced(equation: core.JaxprEqn) -> Sequence[int]:
    """Which arguments of a scan its body sees a slice of at a time, by their shapes: JAX renames what else says so."""
    if equation.primitive.name != "scan":
        return ()
    body: Any = equation.params["jaxpr"]
    pairs: Any = zip(equation.invars, body.jaxpr.invars, strict=True)
    return [place for place, (whole, seen) in enumerate(pairs) if whole.aval.shape != seen.aval.shape]

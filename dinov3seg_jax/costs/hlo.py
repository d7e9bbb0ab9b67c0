"""What a compiled program moves, read off its text: bytes to and from memory, and between devices.

XLA's own analysis counts the body of a loop once; here it counts as often as the loop runs. Bytes are those of the
arrays as they lie in memory, padded to tiles; what stays on the chip (memory spaces other than 0) counts nothing. It is
an estimate from below: whatever is spilled and reloaded inside one operation is not seen.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from dinov3seg_jax.costs.groups import Place, first_group, share_of_links

WIDTHS = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}  # others say their bits
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
SLICES = {"dynamic-slice", "slice", "gather"}
STARTED, DONE, STEP = "AsyncCollectiveStart", "AsyncCollectiveDone", "step"  # of a collective spread over fusions

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations|called_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")


@dataclass(frozen=True)
class Exchange:
    """A collective operation."""

    kind: str  # of COLLECTIVES
    bytes: float  # of its result, for reduce-scatter of its input
    group: int  # devices that take part
    links: float = 1  # of a device's links, the share that joins these

    @property
    def sent(self) -> float:
        """Bytes that leave each device, in the best of algorithms (a ring)."""
        share = (self.group - 1) / self.group
        if self.kind in ("collective-permute", "all-to-all", "ragged-all-to-all"):
            return self.bytes * (1 if self.kind == "collective-permute" else share)
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)

    @property
    def load(self) -> float:
        """Bytes that would take as long if they left by all links."""
        return self.sent / self.links


@dataclass
class Traffic:
    """What one device moves in one run of a program."""

    memory: float = 0  # bytes read and written
    by_file: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # the same, by source file
    exchanges: list[tuple[float, Exchange]] = field(default_factory=list)  # how often, what

    def by_kind(self) -> dict[str, tuple[float, float]]:
        """For each kind of collective how many there are, and their bytes."""
        found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for times, exchange in self.exchanges:
            count, total = found[exchange.kind]
            found[exchange.kind] = count + times, total + times * exchange.bytes
        return dict(found)

    @property
    def sent(self) -> float:
        """Bytes that leave the device."""
        return sum(times * exchange.sent for times, exchange in self.exchanges)

    @property
    def load(self) -> float:
        """Bytes that would take as long if they left by all links."""
        return sum(times * exchange.load for times, exchange in self.exchanges)


@dataclass(frozen=True)
class Instruction:
    """One line of the text."""

    name: str
    type: str
    opcode: str
    rest: str  # operands, and after them attributes
    root: bool

    @cached_property
    def _split(self) -> int:
        depth = 1
        for place, character in enumerate(self.rest):
            depth += (character == "(") - (character == ")")
            if not depth:
                return place
        return len(self.rest)

    @cached_property
    def operands(self) -> list[str]:
        """Names of the instructions that it takes."""
        return re.findall(r"%([\w.\-]+)", self.rest[: self._split])

    @cached_property
    def attributes(self) -> str:
        """All that follows the operands."""
        return self.rest[self._split :]

    @cached_property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        return [name for names in _CALLED.findall(self.attributes) for name in re.findall(r"%([\w.\-]+)", names)]

    @cached_property
    def arrays(self) -> list[tuple[int, bool]]:
        """Bytes of each array of its type, and whether it lies in the device's main memory."""
        return [array_bytes(*match) for match in _ARRAY.findall(self.type)]

    @property
    def cells(self) -> int:
        """Elements of its result, or of the first of several, tiles filled up."""
        found = _ARRAY.search(self.type)
        return math.prod(padded_shape(*found.groups(default="")[1:])) if found else 0

    @property
    def bytes(self) -> int:
        """Bytes of its result in main memory."""
        return sum(size for size, in_memory in self.arrays if in_memory)


def array_bytes(dtype: str, shape: str, order: str = "", layout: str = "") -> tuple[int, bool]:
    """Bytes of an array as it lies in memory, tiles filled up; and whether that is the main memory.

    Args:
        dtype: as in "bf16".
        shape: as in "8,128".
        order: axes from the fastest on, as in "1,0".
        layout: the rest, as in "T(8,128)(2,1)S(1)".
    """
    width = WIDTHS.get(dtype)
    if width is None:
        bits = re.search(r"\d+", dtype)
        width = max(int(bits[0]) // 8, 1) if bits else 0
    space = re.search(r"S\((\d+)\)", layout)
    return width * math.prod(padded_shape(shape, order, layout)), not space or space[1] == "0"


def padded_shape(shape: str, order: str = "", layout: str = "") -> list[int]:
    """Lengths of an array's axes from the slowest on, tiles filled up; the arguments are those of `array_bytes`."""
    lengths = [int(n) for n in shape.split(",") if n]
    if order:
        lengths = [lengths[int(axis)] for axis in reversed(order.split(","))]
    tile = re.search(r"T\(([\d,]+)\)", layout)
    if tile and lengths:
        sides = [int(n) for n in tile[1].split(",")][-len(lengths) :]
        for place, side in enumerate(sides, start=len(lengths) - len(sides)):
            lengths[place] = -(-lengths[place] // side) * side
    return lengths


class Program:
    """The text of a compiled program (`compiled.as_text()`), taken apart."""

    def __init__(self, text: str, places: Sequence[Place] = ()):
        """Read it.

        Args:
            text: of the program.
            places: of the devices in their torus, in the order of the mesh. Without them all links count as joining
                any group.
        """
        self._places = places
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""  # the computation that the program begins with
        inside: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                inside = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                inside[found[2]] = Instruction(found[2], found[3], found[4], found[5], bool(found[1]))
        self.file_of = _Frames(text).of
        bodies = {name: list(body.values()) for name, body in self.computations.items()}
        spread = {_channel(one) for body in bodies.values() if _stage(body) == STARTED for one in body} - {""}
        self._parts = {
            name: (_stage(body), channel)
            for name, body in bodies.items()
            for channel in spread.intersection(map(_channel, body))
        }

    def spread(self, instruction: Instruction) -> tuple[str, str] | None:
        """Of a fusion that is a part of a collective which others run beside: STARTED, DONE or STEP, and its channel.

        The compiler spreads a collective over several fusions, in loops too. Each of them names it.
        """
        return self._parts.get(instruction.called[0]) if instruction.opcode == "fusion" else None

    def traffic(self) -> Traffic:
        """What one device moves when the program runs once."""
        total = Traffic()
        self._run(self.entry, 1, total)
        return total

    def _run(self, computation: str, times: float, total: Traffic) -> None:
        known = self.computations.get(computation, {})
        for instruction in known.values():
            opcode = instruction.opcode
            if opcode == "while":
                for body in instruction.called:
                    self._run(body, times * self.trips(instruction), total)
            elif opcode in ("call", "conditional"):
                for body in instruction.called:
                    self._run(body, times, total)
            elif opcode not in FREE and not opcode.endswith(("-done", "-update")):
                moved = times * self.moved(instruction, known)
                total.memory += moved
                total.by_file[self.file_of(instruction)] += moved
                total.exchanges += [(times, exchange) for exchange in self.exchanges(instruction, known)]

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler says, else the number that its counter is compared with, else 1."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        named = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        condition = self.computations.get(named[1], {}) if named else {}
        last = root_of(condition)
        if last is None or "direction=LT" not in last.attributes:
            return 1
        limits = [condition[name] for name in last.operands if name in condition]
        constants = [re.match(r"(\d+)\)", limit.rest) for limit in limits if limit.opcode == "constant"]
        return next((int(found[1]) for found in constants if found), 1)

    def moved(self, instruction: Instruction, known: Mapping[str, Instruction]) -> float:
        opcode = instruction.opcode
        sources = [known[name] for name in instruction.operands if name in known]
        if opcode == "async-start":  # how the compiler itself writes what JAX prints as slice-start and the like
            started = root_of(self.computations.get(instruction.called[0], {}))
            opcode = f"{started.opcode}-start" if started else ""
        if opcode in ("copy-start", "slice-start", "dynamic-slice-start"):  # (to, from, context) in some order
            arrays = [array for array in instruction.arrays if array[0] > 8]
            size = min((size for size, _ in arrays), default=0)
            return size * sum(in_memory for _, in_memory in arrays)
        if opcode in SLICES:
            return 2 * instruction.bytes
        if opcode in ("dynamic-update-slice", "scatter"):
            return 2 * (sources[1].bytes if opcode == "dynamic-update-slice" else sources[-1].bytes)
        if opcode == "fusion" and (body := self.computations.get(instruction.called[0])):
            part = self.spread(instruction)
            if part and part[0] != STEP:  # all that the collective itself moves counts where it starts
                return sum(self.moved(one, body) for one in body.values() if part[0] == STARTED and _channel(one))
            passed_on = _passed_on(body) if part else set()
            parameters = {i.rest.split(")")[0]: name for name, i in body.items() if i.opcode == "parameter"}
            read = sum(
                min(source.bytes, self._read(body, name))
                for place, source in enumerate(sources)
                if (name := parameters.get(str(place), "")) not in passed_on
            )
            return read + self._written(instruction, body, passed_on)
        return sum(source.bytes for source in sources) + instruction.bytes

    def _read(self, body: dict[str, Instruction], name: str) -> float:
        """Bytes that a fusion reads of one of its inputs: slices only, where it takes nothing else of it."""
        total = 0.0
        for user in body.values():
            if name not in user.operands:
                continue
            place = user.operands.index(name)
            if user.opcode in SLICES and place == 0:
                total += sum(size for size, _ in user.arrays)
            elif user.opcode == "bitcast" and not user.root:
                total += self._read(body, user.name)
            elif user.opcode == "dynamic-update-slice" and place == 0:
                continue
            elif user.opcode == "fusion" and (inner := self.computations.get(user.called[0])):
                inputs = {i.rest.split(")")[0]: n for n, i in inner.items() if i.opcode == "parameter"}
                total += self._read(inner, inputs.get(str(place), ""))
            else:
                return math.inf
        return total

    def _written(self, fusion: Instruction, body: dict[str, Instruction], passed_on: set[str]) -> float:
        root = root_of(body)
        outputs = [body.get(name) for name in root.operands] if root and root.opcode == "tuple" else [root]
        total = 0.0
        for (size, in_memory), output in zip(fusion.arrays, outputs, strict=False):
            if output is not None and output.name in passed_on:
                continue
            while output is not None and output.opcode == "bitcast" and output.operands:
                output = body.get(output.operands[0])
            if output is not None and output.opcode == "dynamic-update-slice":
                update = body.get(output.operands[1])
                size = sum(n for n, _ in update.arrays) if update else size
            total += size * in_memory
        return total

    def exchanges(self, instruction: Instruction, known: Mapping[str, Instruction]) -> list[Exchange]:
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            sizes = [size for size, _ in instruction.arrays if size > 8] or [0]
            inputs = sum(size for name in instruction.operands if name in known for size, _ in known[name].arrays)
            of = inputs if kind in ("all-reduce", "reduce-scatter") else max(max(sizes), sum(sizes) - inputs)
            group = first_group(instruction.attributes)
            if len(group) == 1 and kind != "collective-permute":
                return []
            return [Exchange(kind, of, len(group), share_of_links(group, self._places))]
        if instruction.opcode not in ("fusion", "async-start"):
            return []
        part = self.spread(instruction)
        if part and part[0] != STARTED:
            return []
        found = []
        for name in instruction.called:
            body = self.computations.get(name, {})
            for inner in body.values():
                for exchange in self.exchanges(inner, body):
                    scattered = exchange.kind == "all-reduce" and "reduce-scatter" in name
                    found.append(replace(exchange, kind="reduce-scatter") if scattered else exchange)
        return found


def _passed_on(body: dict[str, Instruction]) -> set[str]:
    """In a step beside a collective: this, and the inputs that are for it alone or go on to the next step."""
    used = {name for one in body.values() if not one.root and not _channel(one) for name in one.operands}
    return {one.name for one in body.values() if _channel(one) or (one.opcode == "parameter" and one.name not in used)}


def _stage(body: list[Instruction]) -> str:
    targets = " ".join(one.attributes for one in body if one.opcode == "custom-call")
    return next((stage for stage in (STARTED, DONE) if f'"{stage}"' in targets), STEP)


def _channel(instruction: Instruction) -> str:
    """Of a collective; else empty."""
    if instruction.opcode.removesuffix("-start") not in COLLECTIVES:
        return ""
    found = re.search(r"channel_id=(\d+)", instruction.attributes)
    return found[1] if found else ""


class _Frames:
    """Which of the package's files an instruction comes from, by the tables at the head of the text."""

    def __init__(self, text: str):
        names = dict(re.findall(r'^(\d+) "([^"]*)"$', _section(text, "FileNames"), re.MULTILINE))
        places = dict(re.findall(r"^(\d+) \{file_name_id=(\d+)", _section(text, "FileLocations"), re.MULTILINE))
        self._files = {place: names.get(file, "") for place, file in places.items()}
        frames = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
        self._frames = {
            int(frame): (place, int(parent or 0) - 1)
            for frame, place, parent in re.findall(frames, _section(text, "StackFrames"), re.MULTILINE)
        }

    def of(self, instruction: Instruction) -> str:
        """The innermost model file, but for the layers that they share; else "other"."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        frame = int(found[1]) if found else 0
        while frame in self._frames:
            place, parent = self._frames[frame]
            model = re.search(r"dinov3seg_jax/models/(?!layers|parameters)(\w+)\.py$", self._files.get(place, ""))
            if model:
                return model[1]
            if parent == frame:
                break
            frame = parent
        return "other"


def _section(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def root_of(computation: Mapping[str, Instruction]) -> Instruction | None:
    """What a computation returns."""
    return next((instruction for instruction in computation.values() if instruction.root), None)

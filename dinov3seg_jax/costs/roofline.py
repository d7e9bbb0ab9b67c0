"""The least time of a compiled program, operation by operation.

The operations of a TPU's program run one after the other. Each takes as long as the slowest of what it needs: the
matrix unit, the vector unit, or memory. Copies and collectives that the program starts and later waits for run beside
the operations between; only what these leave no time for is added. Latencies are left out.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from dinov3seg_jax.costs.arithmetic import Work, work_of
from dinov3seg_jax.costs.hlo import DONE, FREE, STARTED, Instruction, Program
from dinov3seg_jax.training.chips import Chip

MATRIX, VECTOR, MEMORY, LINKS = "matrix unit", "vector unit", "memory", "interconnect"


@dataclass
class Bound:
    """Seconds of a program on one chip, at best."""

    by_resource: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # what the operations wait for
    by_file: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # the same, by source file
    unfilled: float = 0  # of the matrix unit, for sides that do not fill it and for float32
    silent: float = 0  # runs of kernels that do not say what they compute

    @property
    def seconds(self) -> float:
        """All operations, one after the other."""
        return sum(self.by_resource.values())


@dataclass
class _Span:
    """Some time of a program, and for how much of it the memory and the links have nothing to do."""

    seconds: float
    memory: float
    links: float

    def times(self, count: float) -> "_Span":
        return _Span(count * self.seconds, count * self.memory, count * self.links)


@dataclass(frozen=True)
class _Beside:
    """A copy or collective that has begun: after which span, and the seconds that it needs."""

    first: int
    memory: float
    links: float
    file: str


def bound(program: Program, chip: Chip) -> Bound:
    """The least time of `program` on `chip`."""
    found = Bound()
    _run(program, program.entry, 1, chip, found)
    return found


def _run(program: Program, name: str, times: float, chip: Chip, found: Bound) -> _Span:
    """Walk along a computation that runs so many times; the span of one of them."""
    known = program.computations.get(name, {})
    spans: list[_Span] = []
    begun: dict[str, _Beside] = {}
    for instruction in known.values():
        opcode = instruction.opcode
        stage, channel = program.spread(instruction) or ("", "")
        if opcode == "while":
            trips = program.trips(instruction)
            spans += [_run(program, body, times * trips, chip, found).times(trips) for body in instruction.called]
        elif opcode in ("call", "conditional"):
            spans += [_run(program, body, times, chip, found) for body in instruction.called]
        elif stage == STARTED or opcode.endswith("-start"):
            memory, links = _moves(program, instruction, known, chip)
            begun[channel or instruction.name] = _Beside(len(spans), memory, links, program.file_of(instruction))
        elif stage == DONE or opcode.endswith("-done"):
            waited = next((begun.pop(name) for name in (channel, *instruction.operands) if name in begun), None)
            spans += _wait(waited, spans, times, found)
        elif opcode not in FREE and not opcode.endswith("-update"):
            spans.append(_operation(program, instruction, known, times, chip, found))
    for left in begun.values():  # what another program, or the next round, waits for
        spans += _wait(left, spans, times, found)
    return _Span(*(sum(getattr(span, part) for span in spans) for part in ("seconds", "memory", "links")))


def _operation(
    program: Program,
    instruction: Instruction,
    known: Mapping[str, Instruction],
    times: float,
    chip: Chip,
    found: Bound,
) -> _Span:
    work: Work = work_of(program, instruction, known, chip.side)
    memory, links = _moves(program, instruction, known, chip)
    needs = {
        MATRIX: work.filled / chip.flops,
        VECTOR: work.vector / chip.vector,
        MEMORY: memory,
        LINKS: links,
    }
    slowest = max(needs, key=lambda resource: needs[resource])
    seconds = needs[slowest]
    found.by_resource[slowest] += times * seconds
    found.by_file[program.file_of(instruction)] += times * seconds
    found.unfilled += times * (work.filled - work.flops) / chip.flops
    found.silent += times * work.silent
    return _Span(seconds, seconds - memory, seconds - links)


def _moves(
    program: Program, instruction: Instruction, known: Mapping[str, Instruction], chip: Chip
) -> tuple[float, float]:
    """Seconds of the memory and of the links."""
    load = sum(exchange.load for exchange in program.exchanges(instruction, known))
    return program.moved(instruction, known) / chip.bandwidth, load / chip.interconnect


def _wait(beside: _Beside | None, spans: list[_Span], times: float, found: Bound) -> list[_Span]:
    """Take what a copy needs from the idle time of the spans since it began; the wait for the rest."""
    if beside is None:
        return []
    memory, links = beside.memory, beside.links
    for span in spans[beside.first :]:
        taken, sent = min(memory, span.memory), min(links, span.links)
        memory, span.memory = memory - taken, span.memory - taken
        links, span.links = links - sent, span.links - sent
    seconds = max(memory, links)
    if seconds <= 0:
        return []
    found.by_resource[MEMORY if memory >= links else LINKS] += times * seconds
    found.by_file[beside.file] += times * seconds
    return [_Span(seconds, seconds - memory, seconds - links)]

"""What accelerators can do at best: the makers' figures, one device each."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Peaks of one device; 0 where this project has no use for a figure."""

    flops: float  # operations a second, bfloat16, dense
    memory: float = 0  # bytes
    bandwidth: float = 0  # of the memory, bytes a second
    interconnect: float = 0  # bytes a second that leave it, over all of its links
    vector: float = 0  # operations a second of the vector units: 8 x 128 lanes of 4 at the clock that `flops` implies
    side: int = 128  # of a matrix unit


# The first row whose pattern begins `jax.Device.device_kind`.
CHIPS = (
    (r"TPU v4", Chip(275e12, 32e9, 1228e9, 300e9, 8.6e12)),
    (r"TPU v5 ?(lite|e)", Chip(197e12, 16e9, 819e9, 200e9, 6.1e12)),
    (r"TPU v5", Chip(459e12, 95e9, 2765e9, 600e9, 14.3e12)),  # v5p
    (r"TPU v6 ?(lite|e)", Chip(918e12, 32e9, 1640e9, 400e9, 7.2e12, 256)),
    (r"NVIDIA H(100|200)\b(?!.*(PCIe|NVL))", Chip(989e12)),
    (r"NVIDIA A100", Chip(312e12)),
)


def find_chip(device_kind: str) -> Chip | None:
    """The figures of a device; None for unknown ones."""
    return next((chip for kind, chip in CHIPS if re.match(kind, device_kind)), None)


def peak_flops(device_kind: str) -> float | None:
    """Operations per second that a device can do at best, in bfloat16 without sparsity; None for unknown devices."""
    chip = find_chip(device_kind)
    return chip.flops if chip else None

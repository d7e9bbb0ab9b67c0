"""How the benchmarks print what they measured."""

from typing import Any


def shown(name: str, value: Any) -> str:
    """One measurement: bytes as MB, seconds and ratios with two digits."""
    if name.endswith("_bytes"):
        return f"{value / 2**20:.0f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)

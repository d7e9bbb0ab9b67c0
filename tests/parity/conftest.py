"""The `compare` fixture, and the table of the errors it found at the end of the run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Compare = Callable[..., None]
PROPERTY = "parity"


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> Compare:
    """`compare(what, ours, official, tolerance, relative=False)`: the largest error; relative: over max|official|."""

    def check(what: str, ours: Any, official: np.ndarray, tolerance: float, *, relative: bool = False) -> None:
        ours = np.asarray(ours)
        assert ours.shape == official.shape, f"{what}: shape {ours.shape}, officially {official.shape}"
        error = float(np.max(np.abs(ours - official), initial=0))
        if relative:
            error /= max(float(np.max(np.abs(official), initial=0)), np.finfo(np.float32).tiny)
        request.node.user_properties.append((PROPERTY, (what, error, tolerance)))
        assert error <= tolerance, f"{what}: error {error:.2e}, tolerance {tolerance:.0e}"

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line per test: its worst comparison."""
    lines = []
    for report in (*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])):
        rows = [value for name, value in report.user_properties if name == PROPERTY and report.when == "call"]
        if rows:
            what, error, tolerance = max(rows, key=lambda row: row[1] / row[2])
            lines.append(f"{report.nodeid.rsplit('/', 1)[-1]:75} {len(rows):3} {error:9.1e} {tolerance:9.0e}  {what}")
    if lines:
        terminalreporter.section("largest errors against the official modules")
        terminalreporter.line(f"{'test':75} {'#':>3} {'error':>9} {'allowed':>9}  worst of them")
        for line in sorted(lines):
            terminalreporter.line(line)

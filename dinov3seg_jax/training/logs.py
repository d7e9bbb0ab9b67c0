"""What a run tells: a progress bar, `log.jsonl`, and TensorBoard events."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

LOG_FILE = "log.jsonl"


class Logs:
    """The records of one run. After a resume, what an earlier process wrote past the restored step is dropped."""

    def __init__(self, workdir: Path, start: int, steps: int, images_per_step: int):
        self._images_per_step = images_per_step
        self._path = workdir / LOG_FILE
        kept = [line for line in _read_lines(self._path) if json.loads(line)["step"] <= start]
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start)
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=0.5)

    def advance(self) -> None:
        """One step was started."""
        self._bar.update()

    def write(self, step: int, metrics: Mapping[str, float], seconds_per_step: float, data_wait: float) -> None:
        """Record the means since the last record.

        Args:
            step: the last step they cover, counted from 1.
            metrics: losses and norms.
            seconds_per_step: wall time.
            data_wait: the share of it, 0 to 1, spent waiting for data.
        """
        rate = self._images_per_step / seconds_per_step
        record = {"step": step, **metrics, "images_per_second": rate, "data_wait": data_wait}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, step)
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {rate:.1f} images/s")

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        self._file.close()
        self._board.close()


def _read_lines(path: Path) -> list[str]:
    """The whole lines; a line that a killed process left half-written is not one."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def all_finite(metrics: Mapping[str, float]) -> bool:
    """Whether no metric is NaN or infinite."""
    return all(math.isfinite(value) for value in metrics.values())

"""What a run tells: a progress bar, `log.jsonl`, and TensorBoard events. Of several processes the first one tells."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from dinov3seg_jax.files import write_whole
from dinov3seg_jax.processes import is_first

LOG_FILE = "log.jsonl"


class Logs:
    """The records of one run. After a resume, what an earlier process wrote past the restored step is dropped."""

    def __init__(self, workdir: Path, start: int, steps: int, images_per_step: int):
        self._images_per_step = images_per_step
        self._flops = 0.0
        self._peak: float | None = None
        self._tells = is_first()
        self._bar = tqdm(
            total=steps, initial=start, unit="step", dynamic_ncols=True, mininterval=0.5, disable=not self._tells
        )
        if not self._tells:
            return
        path = workdir / LOG_FILE
        kept = [line for line in _read_lines(path) if json.loads(line)["step"] <= start]
        write_whole(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start)

    def know_cost(self, flops: float, peak: float | None) -> None:
        """Let records say how busy devices are.

        Args:
            flops: of the model in one step, on one device; what is recomputed does not count.
            peak: what the device can do in a second, if that is known.
        """
        self._flops, self._peak = flops, peak

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
        if not self._tells:
            return
        rate = self._images_per_step / seconds_per_step
        speed = {"seconds_per_step": seconds_per_step, "images_per_second": rate, "data_wait": data_wait}
        if self._flops:
            speed["tflops_per_device"] = self._flops / seconds_per_step / 1e12
        if self._flops and self._peak:
            speed["utilisation"] = self._flops / seconds_per_step / self._peak
        peak_bytes = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        if peak_bytes is not None:  # CPUs keep no count
            speed["peak_memory_gb"] = peak_bytes / 1e9
        record = {"step": step, **metrics, **speed}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(name, value, step)
        busy = f", {speed['utilisation']:.0%} of peak" if "utilisation" in speed else ""
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {rate:.1f} images/s{busy}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record what is measured now and then."""
        if not self._tells:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Record pictures."""
        for name, picture in pictures.items() if self._tells else ():
            self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        if self._tells:
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

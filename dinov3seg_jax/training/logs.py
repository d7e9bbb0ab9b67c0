"""What a run tells: a progress bar, `log.jsonl`, and trackers. Of several processes the first one tells."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.files import expanded, write_whole
from dinov3seg_jax.processes import is_first
from dinov3seg_jax.training.growing import Growing
from dinov3seg_jax.training.trackers import open_trackers

LOG_FILE = "log.jsonl"
RECORD_FILE = "record.json"  # when the run began, and what trackers call it: a resumed one goes on with the same curves


class Logs:
    """The records of one run. After a resume, what an earlier process wrote past the restored step is dropped."""

    def __init__(self, config: Config, start: int):
        """Open the records of the run in `config.workdir`, which goes on from step `start`.

        Raises:
            UserError: a tracker cannot be used.
        """
        self._images_per_step = config.train.batch_size
        self._flops = 0.0
        self._peak: float | None = None
        self._tells = is_first()
        self.began = time.time()
        if self._tells:
            self._open(config, start)
        self._bar = tqdm(
            total=config.train.steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not self._tells,
        )

    def _open(self, config: Config, start: int) -> None:
        workdir = expanded(config.workdir)
        known = _read_record(workdir / RECORD_FILE)
        self.began = known.setdefault("began", self.began)
        self._growing = Growing(workdir)
        self._trackers = open_trackers(config, self._growing.folder, start, known.setdefault("trackers", {}))
        write_whole(workdir / RECORD_FILE, (json.dumps(known) + "\n").encode())
        kept = [line for line in _read_lines(workdir / LOG_FILE) if json.loads(line)["step"] <= start]
        path = self._growing.folder / LOG_FILE
        write_whole(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

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
        self.scalars(step, {**metrics, **speed})
        busy = f", {speed['utilisation']:.0%} of peak" if "utilisation" in speed else ""
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {rate:.1f} images/s{busy}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers as of a step, counted from 1."""
        if not self._tells:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.scalars(step, values)
        self._growing.now_and_then()

    def keep(self) -> None:
        """Have all records in the run's folder: to be called before a step is saved."""
        if self._tells:
            self._growing.keep()

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Give trackers pictures as of a step, uint8 [h, w, 3] by name."""
        if self._tells:
            for tracker in self._trackers:
                tracker.pictures(step, pictures)

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        if self._tells:
            self._file.close()
            for tracker in self._trackers:
                tracker.close()
            self._growing.close()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' is damaged ({one_line(error)}); delete it: trackers then begin new curves."
        ) from None


def _read_lines(path: Path) -> list[str]:
    """The whole lines; a line that a killed process left half-written is not one."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def all_finite(metrics: Mapping[str, float]) -> bool:
    """Whether no metric is NaN or infinite."""
    return all(math.isfinite(value) for value in metrics.values())

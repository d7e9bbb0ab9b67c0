"""Runs as users start them: processes of train.py on a tiny config, which tests kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time

from dinov3seg_jax.folders import children
from dinov3seg_jax.store.frozen import wrong_with
from dinov3seg_jax.store.run import UNFINISHED, finished_steps

CONFIG_FILE = """
from dinov3seg_jax.config import to_config_dict
from tests.training.test_loop import CONFIG


def get_config():
    config = to_config_dict(CONFIG)
    config.data.eval.split, config.data.eval.size, config.data.eval.image_size = "eval", 20, 48
    config.inference.image_size, config.inference.window, config.inference.stride = 48, 32, 16
    return config
"""
READY = "training "  # what a process says before its first step
STARTED: list[subprocess.Popen] = []  # in this test


class Run:
    """One run: its folder, the command that starts it, and what its processes have said so far."""

    def __init__(self, folder, name, processes=1, devices=1, workdir=None, **options):
        """`folder` is shared by runs, for their config and compiled programs; `options`: of "train".

        The run's own folder is `workdir`, or of its name in `folder`.

        With several `devices` for each process, every parameter is cut over them all.
        """
        self.workdir, self._folder, self._processes = workdir or folder / name, folder, processes
        (folder / "config.py").write_text(CONFIG_FILE)
        words = [f"--config.train.{option}={value}" for option, value in options.items()]
        self._command = [sys.executable, "train.py", "--config", str(folder / "config.py"), *words]
        self._environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "JAX_PLATFORMS": "cpu",
            "DINOV3SEG_CACHE": str(folder / "cache"),  # as users have it, and a kill may damage it too
        }
        if devices > 1:
            self._command.append("--config.fsdp_bytes=0")
            count = f"--xla_force_host_platform_device_count={devices}"
            self._environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
        self._moved = []
        self._lives = 0

    def move(self, processes, devices, **options):
        """Have the next lives on so many processes, with so many devices each, with other options of a config."""
        self._processes = processes
        self._environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        self._moved = [f"--config.{option}={value}" for option, value in options.items()]

    def start(self, workdirs=None):
        """Start all processes; by default of one folder."""
        self._lives += 1
        port = _free_port()
        flags = [f"--coordinator=127.0.0.1:{port}", f"--processes={self._processes}"]
        started = []
        for index in range(self._processes):
            together = [*flags, f"--process={index}"] if self._processes > 1 else []
            workdir = self.workdir if workdirs is None else workdirs[index]
            with self._output(index).open("w") as output:
                started.append(
                    subprocess.Popen(
                        [*self._command, *self._moved, *together, f"--config.workdir={workdir}"],
                        env=self._environment | {"PYTHONUNBUFFERED": "1"},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        STARTED.extend(started)
        return started

    def finish(self):
        """Start all processes and see them through."""
        for process in self.start():
            assert process.wait(timeout=600) == 0, self.said()

    def said(self, index=0):
        """By a process in its last life."""
        return self._output(index).read_text()

    def says(self, text, index):
        """Whether a process that has ended said something; its last words may come a little after its end."""
        end = time.monotonic() + 60
        while text not in self.said(index) and time.monotonic() < end:
            time.sleep(0.1)
        return text in self.said(index)

    def reported(self):
        """The steps that were reported saved in the last life."""
        lines = [line for line in self.said().replace("\r", "\n").splitlines() if line.startswith("saved ")]
        return [int(line.rsplit("/", 1)[1]) for line in lines]

    def began_at(self):
        """The step from which the last life went on; None where it did not come so far."""
        lines = [line for line in self.said().splitlines() if line.startswith(READY)]
        return int(lines[0].split(" from step ")[1].split(" ")[0]) if lines else None

    def has_begun(self):
        """Whether the last life has come to its first step."""
        return self.began_at() is not None

    def whole_steps(self):
        """The checkpoints on disk that match their manifests, and those of what they refer to."""
        folder = self.workdir / "checkpoints"
        return [step for step in finished_steps(folder) if wrong_with(folder / str(step), {}) is None]

    def is_saving(self):
        """Whether a step is being written, or an old one deleted."""
        return any(path.name.endswith(UNFINISHED) for path in children(self.workdir / "checkpoints"))

    def _output(self, index):
        return self._folder / f"{self.workdir.name}.{self._lives}.{index}.txt"


def wait_until(condition, process, seconds=400.0):
    """Wait for something to happen while a process lives; whether it did. So long that no slow machine misses it."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def end_all():
    """Kill what a test has left running."""
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()
    STARTED.clear()


def kill(process):
    """As the machine would that has no memory left."""
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]

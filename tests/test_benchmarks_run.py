"""Benchmarks that need no other package run to their end, at their smallest; nothing else would notice if not."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("windows --repeats 1", "ratio_batched_to_looped"),
        ("head --grids 4 --classes 5", "GFLOP/s"),
        ("input --images 4 --size 96 64 --crop 64 --workers 0 --batch 2", "whole stream"),
        ("checkpoint --config quickstart --out {folder}/saves", "frozen, once"),
        ("train_step --sizes nano --depths 1 --repeats 1", "images/s"),
        (
            "inference --only stages windows pixels classes devices --repeats 1 --batches 1 --sides 64 --lists 5 "
            "--names 3",
            "ratio_two_to_one",
        ),
    ],
    ids=lambda value: value.split()[0],
)
def test_a_benchmark_runs_to_its_end(command, says, tmp_path):
    name, *options = command.format(folder=tmp_path).split()
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert says in ended.stdout

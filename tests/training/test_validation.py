"""Scores while a run trains: they change nothing that trains, and say which step is the best."""

import dataclasses

import numpy as np
import pytest

from dinov3seg_jax.config import DatasetConfig, InferenceConfig
from dinov3seg_jax.evaluation.validation import train
from tests.training.test_loop import at, compiled_once, losses, newest, records  # noqa: F401

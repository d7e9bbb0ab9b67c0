"""Where curves and pictures of a run go, so that one can watch it learn."""

from dinov3seg_jax.training.trackers.table import Tracker, open_trackers, refuse_missing_libraries

__all__ = ["Tracker", "open_trackers", "refuse_missing_libraries"]

"""The training run (§6): `loop` is the run, `step` one update as a pure function, the rest what these two need.

May import `store`, `data`, `models` and the floors below; nothing of inference.
"""

"""Folders on disk, and what they say of themselves: a run and its newest whole step, converted weights, their formats.

May import `models`, `text`, `cache` and the ground floor. Reading is here, for everyone; writing checkpoints is in
`training`, converting in `convert`.
"""

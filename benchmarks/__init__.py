"""Timings that pair us with an alternative in one process and report ratios."""

"""What a training step costs, before there are data, weights or devices: FLOPs, bytes, and slices of TPUs.

May import `training` and the floors below it; it runs no step, but counts and compiles the real one.
"""

"""Pictures and masks with class indices: data sets as tables, augmentation, and the stream of training batches.

`prepare` turns the benchmarks' archives into such folders. May import `text` and the ground floor; no model.
"""

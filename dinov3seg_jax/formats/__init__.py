"""A labelled picture in the formats of other tools: arrays in, files out. `table.py` has a row for each."""

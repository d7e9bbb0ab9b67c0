"""What is behind `dinov3seg prepare`: the benchmarks' archives become images and class indices.

`docs/data.md` says which archives a benchmark needs and what is written. `run.py` does the work by the table in
`recipes.py`; each archive family has a module that says where its files are and how its labels are read.
"""

"""`python -m dinov3seg_jax.data.prepare NAME --source ARCHIVE_OR_FOLDER... --out FOLDER`: archives into class indices.

`docs/data.md` says which archives a benchmark needs and what is written. `run.py` does the work by the table in
`recipes.py`; each archive family has a module that says where its files are and how its labels are read.
"""

"""Pictures as arrays in, labels out (§7): `load` reads a model, `base` says what every segmenter promises.

May import `store`, `data`, `models` and the floors below; no files of results, which are in `pictures`.
"""

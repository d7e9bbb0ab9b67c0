"""Released models, fetched by name: downloaded or taken from named files, checked, and converted once.

Nothing is downloaded but by `fetch.fetch`, which only the command `dinov3seg fetch` calls.
"""

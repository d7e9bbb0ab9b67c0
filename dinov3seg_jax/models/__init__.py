"""The method as pure functions of arrays: no files, no flags, no randomness but the keys that are given.

`dinov3seg` is the paper's figure as code; a file per part follows. May import `config` and `errors`.
"""

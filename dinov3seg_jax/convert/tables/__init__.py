"""One table of rules per release: where each official tensor goes, and what is done to it; `rules` applies them.

`rules`, `rows` and `transforms` are what the tables share. May import `config`, `errors` and functions of `models`; it
builds no model.
"""

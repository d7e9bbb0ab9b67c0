"""A run's model as programs that need only JAX and NumPy: `writer` writes them, `scorer` runs them.

`writer` may import `inference` and the floors below it; `scorer` only `errors` and `files`, so that it runs without the
code of the model.
"""

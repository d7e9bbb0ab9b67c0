"""Official weights become this project's arrays, exactly: open a file, recognise the release, plan, write, verify.

The rules are data, one table per release in `tables`. May import `store`, `models` and the ground floor; torch is
imported only to read `.pth` files.
"""

"""A window to see answers in: a page in the browser, and the same functions as a JSON API.

May import `pictures` and the floors below it. What is asked here is what the command line and Python ask.
"""

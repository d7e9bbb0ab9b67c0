"""Files in, files out: a folder of pictures, which of them are done, and pictures larger than memory.

May import `inference` and the floors below it. What is computed on a picture is in `inference`.
"""

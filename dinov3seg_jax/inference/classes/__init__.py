"""Class lists of any length (§4): text embeddings of the names, kept on disk, and scores of a few classes at a time.

May import `models`, `text`, `cache`, the ground floor, and of `inference` what knows no segmenter.
"""

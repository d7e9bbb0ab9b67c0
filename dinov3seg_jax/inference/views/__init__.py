"""Which pixels the model looks at together, and how the results become one label map: windows, tiles, strips (§7).

May import `models`, the ground floor, and of `inference` what knows no segmenter: segmenters import this room.
"""

"""How programs meet the hardware: number formats, several devices, compiler options, few lengths for many lists.

May import `models` and the ground floor, and nothing else of `inference`.
"""

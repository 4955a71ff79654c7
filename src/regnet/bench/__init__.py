"""The benchmark: which networks, how they are measured, on which machine, in one document.

`selection` measures with it; it compares and reports, and trains nothing.
"""

"""The benchmark: measure networks on a machine, and report them in one document.

The package also compares documents. `selection` measures with it. It trains nothing.
"""

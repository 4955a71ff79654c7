"""The paper's math: configs, widths, blocks, layers, complexity, fits, scaling, variants.

NumPy and the standard library alone, without torch; every room above may import it.
"""

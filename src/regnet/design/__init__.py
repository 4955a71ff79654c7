"""The paper's math: configs, widths, blocks, layers, complexity, fits, scaling and variants.

It needs only NumPy and the standard library, not torch, so every other subpackage may import it.
"""

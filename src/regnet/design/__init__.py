"""The paper's math, on NumPy and the standard library alone."""

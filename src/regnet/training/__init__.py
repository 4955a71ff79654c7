"""Training: recipes as data, runs that can be repeated, and checkpoints that resume exactly.

`studies` trains populations with it; no room below imports it.
"""

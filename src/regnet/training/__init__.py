"""Training: recipes as data, runs that can be repeated, and checkpoints that resume exactly.

`regnet.studies` trains populations with this package; no lower package imports it.
"""

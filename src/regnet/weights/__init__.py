"""Published weights: the table of checkpoints, their download and verification, files and names.

Bytes and names only, it builds no model; `zoo` and the rooms above import it.
"""

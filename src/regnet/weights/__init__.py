"""Published weights: the table of checkpoints, downloads and verification, files and tensor names.

This package handles bytes and names and builds no models. The package `zoo` and those above it
import it.
"""

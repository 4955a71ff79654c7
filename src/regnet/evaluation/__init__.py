"""Measure accuracy on labelled images, and compare it with the published accuracy.

This package runs models of `zoo` on `engines`. Only the command line and scripts import it.
"""

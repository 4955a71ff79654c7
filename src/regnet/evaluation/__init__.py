"""Accuracy on labelled images, beside the published one.

It runs models of `zoo` on `engines`; only the command line and scripts import it.
"""

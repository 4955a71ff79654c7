"""Accuracy on labelled images: which set it is, what a model says, and what that is worth."""

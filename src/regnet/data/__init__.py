"""Open, preprocess, label, load and augment images.

This package does not depend on models, so every package above it may import it.
"""

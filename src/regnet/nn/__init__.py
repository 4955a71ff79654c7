"""PyTorch modules: layers, blocks, AnyNet with its feature maps, and EfficientNet as a baseline.

This package builds on `design`. `zoo` and the packages above it import this one; `weights` does
not.
"""

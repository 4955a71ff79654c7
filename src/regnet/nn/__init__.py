"""PyTorch modules: layers, blocks, AnyNet with its feature maps, and EfficientNet as the baseline.

Built from `design`; `zoo` and the rooms above import it, `weights` does not.
"""

"""AnyNet as a PyTorch module: layers, blocks, the model and its feature maps."""

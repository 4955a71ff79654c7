"""GPU kernels for the blocks of RegNetX and RegNetY, in Triton, each beside a reference in PyTorch.

Feature maps are (N, H, W, C) and contiguous, in half precision. Products are accumulated in
float32. Without Triton, or for tensors that are not on a GPU, the references compute the same more
slowly. This package builds on `nn`; `engines` and the packages above it may import it.
"""

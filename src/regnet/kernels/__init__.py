"""GPU kernels for the blocks of RegNetX and RegNetY, in Triton, each beside a reference in PyTorch.

Feature maps are (N, H, W, C) and contiguous, in half precision; sums and products are float32.
Where there is no Triton, or the tensors are not on a GPU, the references do the same, slower.
Kernels are built from modules of `nn`; `engines` and the rooms above may import them.
"""

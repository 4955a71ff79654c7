"""A small vision transformer whose depth and width are sampled from a design space."""

import torch
from torch import Tensor, nn

PATCH = 4


class ViT(nn.Module):
    """A pre-norm encoder over patches of 4 x 4 pixels that classifies the mean of the tokens."""

    def __init__(self, depth: int, width: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.positions = nn.Parameter(torch.zeros(1, (image_size // PATCH) ** 2, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        block = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 2 * width, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of images (N, 3, H, W)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def build(depth: int, width: int, num_classes: int, image_size: int) -> nn.Module:
    """Build the network for a sample of the space."""
    return ViT(depth, width, num_classes, image_size)

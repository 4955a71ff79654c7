"""An objective other than classification: how precisely a network locates a bright spot."""

import torch
from torch import Tensor, nn

from regnet import AnyNet, RegNetConfig

SIDE, STEPS, BATCH = 32, 40, 32


def spots(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy images with a bright spot, (N, 3, 32, 32), and its centers, (N, 2) in pixels."""
    centers = 4 + (SIDE - 8) * torch.rand(count, 2, generator=generator)
    rows = torch.arange(SIDE).float()
    y, x = ((rows - centers[:, axis, None]) ** 2 for axis in (0, 1))
    spot = torch.exp(-(y[:, :, None] + x[:, None, :]) / 8)
    noise = torch.randn(count, 3, SIDE, SIDE, generator=generator) / 4
    return noise + spot[:, None], centers


def error(config: RegNetConfig, seed: int, device: str) -> dict[str, float]:
    """Train a network; return its mean distance from the spots in pixels, and the last loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = AnyNet(config)
    network.reset_classifier(2)
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(STEPS):
        images, centers = spots(BATCH, generator)
        loss = nn.functional.mse_loss(network(images.to(device)), centers.to(device) / SIDE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, centers = spots(256, torch.Generator().manual_seed(2**31))
    with torch.inference_mode():
        found = SIDE * network.eval()(images.to(device)).cpu()
    return {"error": (found - centers).norm(dim=1).mean().item(), "loss": loss.item()}

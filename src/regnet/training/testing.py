"""Measure accuracy on held-out images during training."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from regnet.data.augment import normalize
from regnet.data.loading import load
from regnet.data.preprocess import Preprocess
from regnet.data.sets import ImageSet
from regnet.nn.views import evaluating
from regnet.process_group import Group


class Test:
    """Measures top-1 accuracy on a set of images, which the processes share among them."""

    def __init__(
        self,
        images: ImageSet,
        transform: Preprocess,
        *,
        group: Group,
        pixels: Tensor | None,
        batch_size: int,
        workers: int,
    ) -> None:
        self.images, self.transform, self.group, self.workers = images, transform, group, workers
        self.batch_size = batch_size
        self.labels = torch.from_numpy(images.labels)
        self.pixels = pixels
        """All images on the device as bytes (N, 3, H, W); None: they are read for each test."""

    def top1(self, network: nn.Module) -> float:
        """Return top-1 in percent, computed in float32; an unreadable image counts as a miss."""
        hits = 0
        batches = self._batches()
        # All processes make the same number of passes: in each, those with a sharded network wait
        # for each other.
        passes = -(-len(range(0, len(self.images), self.group.size)) // self.batch_size)
        look = self.transform
        nothing = torch.zeros(1, look.channels, *look.size, device=self.group.device)
        with evaluating(network), torch.no_grad():
            for _ in range(passes):
                indices, images = next(batches, (None, nothing))
                found = network(images.contiguous(memory_format=torch.channels_last)).argmax(1)
                if indices is not None:
                    hits += int((found.cpu() == self.labels[indices]).sum())
        total = self.group.sum(torch.tensor(hits, device=self.group.device))
        return 100 * total.item() / len(self.images)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        share = list(self.group.share(len(self.images)))
        if self.pixels is not None:
            if not share:
                return
            for indices in torch.tensor(share, dtype=torch.long).split(self.batch_size):
                pixels = self.pixels[indices.to(self.pixels.device)]
                yield indices, normalize(pixels, self.transform.mean, self.transform.std)
            return
        for loaded in load(
            self.images, share, self.transform, batch_size=self.batch_size, workers=self.workers
        ):
            if loaded.images is not None:
                yield torch.tensor(loaded.indices), loaded.images.to(self.group.device)

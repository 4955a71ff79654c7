"""The source that a model's name stands for: an architecture and a checkpoint."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from regnet.data.preprocess import Preprocess
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.weights.card import OWN, Card
from regnet.weights.catalog import Checkpoint

if TYPE_CHECKING:
    from regnet.nn.model import GlobalPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An architecture, and the checkpoint that the name of the model selects."""

    config: AnyNetConfig | RegNetConfig
    architecture: str = OWN
    """Name of the variant; "regnet" for any other network."""
    checkpoint: Checkpoint | None = None
    """The checkpoint; None if the name selects none."""
    global_pool: "GlobalPool | None" = None
    """The pool that the config of a repository specifies; None if it specifies none."""

    def card(
        self, *, loaded: bool, same_classes: bool = True, unchanged: bool = True
    ) -> Card | None:
        """Return what is known about a model that is built from this source.

        Args:
            loaded: whether the model takes the checkpoint's weights.
            same_classes: whether it keeps the checkpoint's classifier.
            unchanged: whether it is otherwise the network whose accuracies were published.

        Returns:
            None if nothing is known: the network is no variant and has no checkpoint.
        """
        if self.checkpoint and loaded:
            card = replace(self.checkpoint.card, architecture=self.architecture)
            if not same_classes:
                card = card.other_classes()
            return card if unchanged else replace(card, metrics=())
        if self.checkpoint:
            return Card(architecture=self.architecture, preprocess=self.checkpoint.preprocess)
        variant = VARIANTS.get(self.architecture)
        if variant is None:
            return None
        return Card(
            architecture=variant.name, preprocess=Preprocess(size=(variant.image_size,) * 2)
        )

"""Teachers: trained networks whose answers a run learns from in addition to the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from regnet.engines.transforms import folded
from regnet.errors import ConfigError
from regnet.nn.model import AnyNet, digest_of
from regnet.training.input import seed_of
from regnet.zoo.create import create, preprocess


class Teachers:
    """Networks that see what the learner sees, mixed images included (Beyer et al. 2022).

    Each forward pass has one of them as its teacher, drawn by seed, epoch and step: the gradient
    then expects that of their mean probabilities, an ensemble at the price of one network.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        device: torch.device,
    ) -> None:
        """Load them.

        Args:
            names: of weights, as `create` takes them.
            classes: those that the learner tells apart, in the order of its outputs.
            mean: of the colors, which the learner's images have lost; std likewise.
            std: by which they were divided.
            seed: of the run.
            device: where they answer.

        Raises:
            ConfigError: one has other classes.
            WeightsError: there are no such weights.
        """
        self.seed = seed
        self.networks: list[AnyNet] = []
        self.colors: list[tuple[Tensor, Tensor]] = []
        self.digests: dict[str, str] = {}
        for name in names:
            network: AnyNet = create(name, pretrained=True)
            known = network.card.labels if network.card else ()
            if network.num_classes != len(classes) or (known and list(known) != list(classes)):
                raise ConfigError(
                    f"teacher {name}: not the classes of the images, in their order; name one that "
                    f"was trained on {', '.join(classes[:3])}, ... ({len(classes)} classes)"
                )
            self.digests[name] = digest_of(network)
            look = preprocess(network)
            if look.channels != len(mean):
                raise ConfigError(
                    f"teacher {name} takes images of {look.channels} channels, the network that "
                    f"learns of {len(mean)}; in_chans of both must be the same"
                )
            factor = torch.tensor(std) / torch.tensor(look.std)
            shift = (torch.tensor(mean) - torch.tensor(look.mean)) / torch.tensor(look.std)
            self.colors.append((factor.to(device), shift.to(device)))
            placed = folded(network).to(device)
            self.networks.append(placed.to(memory_format=torch.channels_last))  # type: ignore[call-overload]  # its stub lacks this one

    @torch.no_grad()
    def logits(self, images: Tensor, *place: int) -> Tensor:
        """(N, classes): the answers of the teacher whose turn it is, for the learner's images.

        Args:
            images: (N, 3, H, W), without the learner's mean, divided by its std.
            place: epoch, step and pass.
        """
        turn = seed_of(self.seed, "teacher", *place) % len(self.networks)
        factor, shift = self.colors[turn]
        out: Tensor = self.networks[turn](images * factor[:, None, None] + shift[:, None, None])
        return out.float()


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || learner) of probabilities at temperature T (Hinton et al. 2015, section 2).

    Args:
        logits: (N, classes) of the learner.
        teacher: (N, classes) of the teacher.
        temperature: T; 1 leaves probabilities as they are.
    """
    return temperature**2 * functional.kl_div(
        (logits / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )

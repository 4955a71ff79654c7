"""Teachers: trained networks whose answers a run learns from in addition to the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from regnet.engines.transforms import folded
from regnet.errors import ConfigError
from regnet.nn.model import AnyNet
from regnet.nn.views import digest_of
from regnet.training.input import seed_of
from regnet.zoo.create import create, preprocess


class Teachers:
    """Networks that see the same images as the learner, mixed ones included (Beyer et al. 2022).

    Each forward pass has one of them as its teacher, drawn by seed, epoch and step. The expected
    gradient is then that of their mean probabilities: an ensemble at the price of one network.
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
        """Load the teachers.

        Args:
            names: names of weights, as `create` takes them.
            classes: the learner's classes, in the order of its outputs.
            mean: mean of each color, which was subtracted from the learner's images.
            std: standard deviation of each color, by which they were then divided.
            seed: seed of the run.
            device: device on which the teachers run.

        Raises:
            ConfigError: a teacher has other classes or takes images of other channels.
            WeightsError: the weights of a teacher do not exist.
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
                    f"teacher {name}: its classes are not those of the images in their order; name "
                    f"a teacher of {', '.join(classes[:3])}, ... ({len(classes)} classes)"
                )
            self.digests[name] = digest_of(network)
            look = preprocess(network)
            if look.channels != len(mean):
                raise ConfigError(
                    f"teacher {name} takes images of {look.channels} channels, and the network "
                    f"that learns takes {len(mean)}; name another teacher, or change in_chans"
                )
            # From images normalized for the learner to images normalized for the teacher.
            factor = torch.tensor(std) / torch.tensor(look.std)
            shift = (torch.tensor(mean) - torch.tensor(look.mean)) / torch.tensor(look.std)
            self.colors.append((factor.to(device), shift.to(device)))
            placed = folded(network).to(device)
            self.networks.append(placed.to(memory_format=torch.channels_last))  # type: ignore[call-overload]  # its stub lacks this one

    @torch.no_grad()
    def logits(self, images: Tensor, *place: int) -> Tensor:
        """Return the answers of one teacher to the learner's images: logits (N, classes).

        Args:
            images: (N, channels, H, W), normalized with the learner's mean and std.
            place: epoch, step and pass, which draw the teacher.
        """
        turn = seed_of(self.seed, "teacher", *place) % len(self.networks)
        factor, shift = self.colors[turn]
        out: Tensor = self.networks[turn](images * factor[:, None, None] + shift[:, None, None])
        return out.float()


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || learner) at temperature T (Hinton et al. 2015, section 2).

    Args:
        logits: logits of the learner (N, classes).
        teacher: logits of the teacher (N, classes).
        temperature: T; 1 leaves the probabilities as they are.
    """
    return temperature**2 * functional.kl_div(
        (logits / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )

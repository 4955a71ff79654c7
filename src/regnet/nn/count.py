"""Count a module's complexity by running it, with fvcore and with torch's own counter.

The arithmetic of `regnet.design.complexity` needs no module; these are what it is checked against.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from regnet.design.complexity import Complexity
from regnet.nn.model import AnyNet, evaluation_view
from regnet.quiet import quiet


def count(model: AnyNet, image_size: int | tuple[int, int] = 224) -> Complexity[int]:
    """What fvcore counts for one image: multiply-adds of convolutions and linear layers.

    Two conventions differ from the paper's: additions of biases do not count, nor do the outputs of
    max pools.

    Args:
        model: the network; not on `meta`, which torch cannot trace.
        image_size: side, or (height, width), of the image in pixels.
    """
    # fvcore tells of operators without a rule, torch that its tracer is old.
    with quiet("fvcore.nn.jit_analysis"):
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

        image, network = _image(model, image_size), evaluation_view(model)
        by_operator = FlopCountAnalysis(network, image).by_operator()
        activations = ActivationCountAnalysis(network, image).total()
    return Complexity(
        flops=int(by_operator["conv"] + by_operator["linear"]),
        params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        activations=int(activations),
    )


def count_flops_torch(model: AnyNet, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-adds by `torch.utils.flop_counter`, which counts each as two; on `meta` too."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        evaluation_view(model)(_image(model, image_size))
    return int(counter.get_total_flops()) // 2


def _image(model: AnyNet, image_size: int | tuple[int, int]) -> torch.Tensor:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    reference = next(model.parameters())
    return reference.new_zeros((1, model.config.in_chans, height, width))

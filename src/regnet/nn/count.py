"""Count a module's complexity by running it, with fvcore and with torch's own counter.

`regnet.design.complexity` computes the same numbers from a config, without a module. The counters
here verify it.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from regnet.design.complexity import Complexity
from regnet.nn.model import AnyNet
from regnet.nn.views import evaluation_view
from regnet.quiet import quiet


def count(model: AnyNet, image_size: int | tuple[int, int] = 224) -> Complexity[int]:
    """Count multiply-adds, parameters and activations for one image with fvcore.

    Multiply-adds are those of convolutions and linear layers. Two conventions differ from the
    paper's: fvcore does not count the additions of biases, and it does not count the outputs of max
    pools as activations.

    Args:
        model: the network. It must not be on the device "meta", because torch cannot trace it
            there.
        image_size: side, or (height, width), of the image in pixels.
    """
    # fvcore warns about operators without a rule, and torch warns that its tracer is deprecated.
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
    """Count multiply-adds with `torch.utils.flop_counter`; the model may be on "meta"."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        evaluation_view(model)(_image(model, image_size))
    return int(counter.get_total_flops()) // 2  # torch counts a multiply-add as two operations


def _image(model: AnyNet, image_size: int | tuple[int, int]) -> torch.Tensor:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    reference = next(model.parameters())
    return reference.new_zeros((1, model.config.in_chans, height, width))

"""Run a network on a given engine, after checking its outputs."""

from collections.abc import Callable

import torch
from torch import Tensor

from regnet.engines.base import DTYPES, Precision, Target
from regnet.engines.batches import for_any_batch
from regnet.engines.check import INPUT_SETS, answers, build_checked, check_float32
from regnet.engines.optimize import find_engine
from regnet.errors import ConfigError, EngineError, in_one_line, unknown
from regnet.nn.model import AnyNet


def running(
    network: AnyNet,
    shape: tuple[int, ...],
    engine: str,
    precision: Precision,
    device: torch.device,
    streams: int = 0,
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return a function that runs batches in float32, and the precision that it computes in.

    Args:
        network: the network, in evaluation mode and on the device.
        shape: shape of the batches (N, C, H, W); batches of another N are padded or cut.
        engine: name of the engine; eager computes in the precision of the weights.
        precision: precision to compute in.
        device: device to run on.
        streams: pieces of a batch to compute at the same time; see `regnet.engines.batches`.

    Raises:
        ConfigError: there is no such engine or precision, or eager computes in another precision.
        EngineError: the engine cannot run this network here, or its outputs differ from eager's.
    """
    if precision not in DTYPES:
        raise ConfigError(unknown("precision", precision, DTYPES))
    kind = next(network.parameters()).dtype
    if engine == "eager":
        own = next((name for name, dtype in DTYPES.items() if dtype == kind), str(kind))
        if precision not in ("fp32", own):
            raise ConfigError(
                f"eager computes in the precision of the weights, {own}; for {precision} use "
                "another engine, such as folded"
            )
        return (lambda x: network(x.to(kind)).float()), own
    check_float32(network)
    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=rng).to(device) for _ in range(INPUT_SETS)]
    target = Target(device=device, precision=precision, streams=streams)
    known = find_engine(engine)
    try:
        built = build_checked(known, network, inputs, answers(network, inputs), target)
        reason = built.reason
    except Exception as error:  # noqa: BLE001 - an engine may raise anything
        reason = in_one_line(error, most=200)
    if reason or built.runner is None:
        raise EngineError(f"{engine} cannot run this network in {precision} here: {reason}")
    return for_any_batch(built.runner, shape[0]), precision

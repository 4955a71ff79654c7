"""OpenVINO, for CPUs."""

import torch
from torch import Tensor, nn

from regnet.engines.base import Runner, Target, half_obstacle
from regnet.engines.transforms import folded


class OpenVINO:
    """OpenVINO's CPU plugin, optimized for the latency of one request."""

    name = "openvino"

    def obstacle(self, target: Target) -> str | None:
        if target.device.type != "cpu":
            return "for CPUs only"
        try:
            import openvino  # noqa: F401 - whether it is there
        except ImportError:
            return "not installed: pip install 'regnet[openvino]'"
        return half_obstacle(target)

    def build(self, model: nn.Module, example: Tensor, target: Target) -> Runner:
        import openvino

        with torch.no_grad():
            converted = openvino.convert_model(folded(model), example_input=example)
        converted.reshape(list(example.shape))
        compiled = openvino.Core().compile_model(
            converted,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "bf16" if target.precision == "bf16" else "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            },
        )
        request = compiled.create_infer_request()

        def run(x: Tensor) -> Tensor:
            request.infer([x.detach().contiguous().numpy()], share_inputs=True)
            # The request's own memory holds the next answer too.
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

        return run

"""Entry points for `torch.hub`: a function for each variant, and `create`.

    model = torch.hub.load("OWNER/regnet", "regnet_y_1_6gf", pretrained=True)

Each function accepts the options of `regnet.create` and returns a model. `torch.hub.help` prints
the documentation of an entry point.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))  # import this checkout

from regnet import create
from regnet.zoo import factories

dependencies = ["torch", "numpy", "PIL", "safetensors", "huggingface_hub"]

__all__ = ["create", *factories.__all__]
globals().update({name: getattr(factories, name) for name in factories.__all__})

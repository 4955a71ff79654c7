"""Entry points for `torch.hub`: one per variant, and `create`.

    model = torch.hub.load("OWNER/regnet", "regnet_y_1_6gf", pretrained=True)

Each takes the options of `regnet.create` and returns a model; `torch.hub.help` shows them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))  # this very checkout

from regnet import create
from regnet.zoo import factories

dependencies = ["torch", "numpy", "PIL", "safetensors", "huggingface_hub"]

__all__ = ["create", *factories.__all__]
globals().update({name: getattr(factories, name) for name in factories.__all__})

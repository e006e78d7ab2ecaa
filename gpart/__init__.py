"""GPart: fine-tuning by one global partition of the weights, W = W0 + P·theta with PᵀP = I.

This package alone is the method, on torch and safetensors. ``gpart.callbacks`` is the training framework on Lightning.
"""

from gpart.adapter import GPartAdapter, attach, get_adapters
from gpart.config import GPartConfig
from gpart.partition import Partition
from gpart.storage import load_adapter
from gpart.version import __version__

__all__ = ["GPartAdapter", "GPartConfig", "Partition", "__version__", "attach", "get_adapters", "load_adapter"]

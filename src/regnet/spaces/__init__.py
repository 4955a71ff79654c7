"""Design spaces as data, samples of thousands of their networks, and a model of their latency.

This subpackage needs only NumPy, not torch. It may import `regnet.design` and what that may import.
"""

from regnet.spaces.custom import CustomConfig, CustomSample, sample_custom
from regnet.spaces.distributions import Distribution
from regnet.spaces.latency import LatencyModel
from regnet.spaces.paper import SPACES, constrained, find_space, search_space
from regnet.spaces.sampling import Sample, sample, sample_by_flops
from regnet.spaces.space import Space

__all__ = [
    "SPACES",
    "CustomConfig",
    "CustomSample",
    "Distribution",
    "LatencyModel",
    "Sample",
    "Space",
    "constrained",
    "find_space",
    "sample",
    "sample_by_flops",
    "sample_custom",
    "search_space",
]

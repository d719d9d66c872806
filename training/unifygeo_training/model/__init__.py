"""The network of arXiv 2505.07622, one family from one small config."""

from unifygeo_training.model.config import NetworkConfig
from unifygeo_training.model.network import UnifyGeo

__all__ = ["NetworkConfig", "UnifyGeo"]

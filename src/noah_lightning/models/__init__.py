"""Image → feature map (B, C, L), for any model timm knows."""

from noah_lightning.models.feature_extractor import FeatureMapBackbone, make_backbone
from noah_lightning.models.timm_models import build_timm_model

__all__ = ["FeatureMapBackbone", "build_timm_model", "make_backbone"]

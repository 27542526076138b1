"""The paper's architectures that timm lacks, registered with timm, so that they are built like any of its models."""

from noah_lightning.models.zoo import mobilenetv3_small, narrow, pvt_v1, shufflenet_v2

__all__ = ["mobilenetv3_small", "narrow", "pvt_v1", "shufflenet_v2"]

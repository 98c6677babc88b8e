"""A stage of Sparse R-CNN: each proposal looks at its region with weights that it makes itself."""

import torch
from torch import Tensor, nn

from smt.config.heads import SparseRCNN
from smt.detection.losses import start_at_prior
from smt.models.attention import repeatable


class DynamicInteraction(nn.Module):
    """Two 1 x 1 convolutions over a pooled region, whose weights its proposal generates.

    Dynamic instance interaction (Sparse R-CNN, section 3.1), then a linear layer over the whole
    region.
    """

    def __init__(self, channels: int, hidden: int, resolution: int) -> None:
        super().__init__()
        self.generate = nn.Linear(channels, 2 * channels * hidden)
        self.norm_in = nn.LayerNorm(hidden)
        self.norm_out = nn.LayerNorm(channels)
        self.output = nn.Linear(channels * resolution**2, channels)
        self.norm = nn.LayerNorm(channels)
        self.relu = nn.ReLU()

    def forward(self, proposals: Tensor, regions: Tensor) -> Tensor:
        """Return (N, C) of proposals (N, C) and their regions (N, C, R, R)."""
        channels = proposals.shape[1]
        first, second = self.generate(proposals).chunk(2, dim=1)  # (N, C * hidden) each
        x = regions.flatten(2).transpose(1, 2)  # (N, R * R, C)
        x = torch.bmm(x, first.unflatten(1, (channels, -1)))  # (N, R * R, hidden)
        x = self.relu(self.norm_in(x))
        x = torch.bmm(x, second.unflatten(1, (-1, channels)))  # (N, R * R, C)
        x = self.relu(self.norm_out(x))
        output: Tensor = self.relu(self.norm(self.output(x.flatten(1))))
        return output


class DynamicHead(nn.Module):
    """A stage: attention among an image's proposals, interaction with regions, then two towers."""

    def __init__(self, head: SparseRCNN, classes: int) -> None:
        super().__init__()
        channels = head.channels
        self.attention = nn.MultiheadAttention(channels, head.heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(channels)
        self.interaction = DynamicInteraction(channels, head.dynamic_channels, head.resolution)
        self.interaction_norm = nn.LayerNorm(channels)
        self.feedforward = nn.Sequential(
            nn.Linear(channels, head.feedforward), nn.ReLU(), nn.Linear(head.feedforward, channels)
        )
        self.feedforward_norm = nn.LayerNorm(channels)
        self.class_tower = _tower(channels, head.class_layers)
        self.box_tower = _tower(channels, head.box_layers)
        self.classes = nn.Linear(channels, classes)
        self.offsets = nn.Linear(channels, 4)
        self._initialise()

    def forward(self, proposals: Tensor, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, P, classes), offsets (B, P, 4) and the next stage's proposals.

        `proposals` are (B, P, C), `regions` (B * P, C, R, R), image by image.
        """
        attended, _ = self.attention(proposals, proposals, proposals, need_weights=False)
        x = self.attention_norm(proposals + repeatable(attended))  # (B, P, C)
        interacted = self.interaction(x.flatten(0, 1), regions).view_as(x)
        x = self.interaction_norm(x + interacted)
        x = self.feedforward_norm(x + self.feedforward(x))
        return self.classes(self.class_tower(x)), self.offsets(self.box_tower(x)), x

    def _initialise(self) -> None:
        """Draw every matrix from Xavier's uniform distribution, as mmdet's DIIHead does."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        start_at_prior(self.classes.bias)
        nn.init.zeros_(self.offsets.bias)


def _tower(channels: int, layers: int) -> nn.Sequential:
    """Return linear layers without bias, each with LayerNorm and ReLU."""
    tower = nn.Sequential()
    for _ in range(layers):
        tower.append(nn.Linear(channels, channels, bias=False))
        tower.append(nn.LayerNorm(channels))
        tower.append(nn.ReLU())
    return tower

"""DINO's transformer (Zhang et al., 2022): encoder, query selection, decoder.

Boxes are centre and sides as fractions of the unpadded image; a box's logits are those of its four
numbers, each between 0 and 1.
"""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from smt.config.heads import DINO
from smt.detection.deformable import DeformableAttention
from smt.detection.dino_neck import Levels
from smt.detection.losses import start_at_prior
from smt.models.attention import repeatable

PLACE_TEMPERATURE = 20
"""Of the sine encoding of places (DINO's config, pe_temperatureH and pe_temperatureW)."""
BOX_TEMPERATURE = 10000
"""Of the sine encoding of boxes (DINO's code, as in DAB-DETR)."""
LOGIT_EPSILON = 1e-3
"""Numbers nearer to 0 or 1 are taken for it in a logit (DINO's code)."""
PROPOSAL_SIDE = 0.05
"""Of the finest level's proposals; each coarser level's are twice as large (Deformable DETR)."""
PROPOSAL_MARGIN = 0.01
"""Places whose proposal has a number nearer to 0 or 1 propose nothing (Deformable DETR)."""


def sine(numbers: Tensor, channels: int, temperature: float) -> Tensor:
    """Return `numbers` (..., K), 0 to 1, as waves (..., K * channels): one number after another.

    Sine and cosine take turns; a wave is 2 pi / temperature ^ (2i / channels) long at pair i.
    """
    pairs = torch.arange(channels // 2, device=numbers.device, dtype=torch.float32)
    angles = 2 * math.pi * numbers[..., None] / temperature ** (2 * pairs / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def logit(numbers: Tensor) -> Tensor:
    """Return the inverse of the sigmoid, of numbers kept off 0 and 1."""
    numbers = numbers.clamp(0, 1)
    return torch.log(numbers.clamp(min=LOGIT_EPSILON) / (1 - numbers).clamp(min=LOGIT_EPSILON))


def perceptron(channels: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    widths = [channels, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for in_features, out_features in pairwise(widths):
        parts += [nn.Linear(in_features, out_features), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def xavier(module: nn.Module) -> None:
    """Draw the weights of linear layers anew from Xavier's uniform distribution."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _attention(head: DINO) -> DeformableAttention:
    return DeformableAttention(
        head.channels, heads=head.heads, levels=head.levels, points=head.points
    )


def _attend(
    attention: DeformableAttention,
    queries: Tensor,
    references: Tensor,
    memory: Tensor,
    levels: Levels,
) -> Tensor:
    """Return what queries (B, Q, C) attend to around their references, on all levels."""
    attended: Tensor = attention(
        queries,
        references,
        memory,
        shapes=levels.shapes,
        sides=levels.sides,
        padding=levels.padding,
    )
    return attended


class EncoderLayer(nn.Module):
    """Each place attends to a few others on every level."""

    def __init__(self, head: DINO) -> None:
        super().__init__()
        self.attention = _attention(head)
        self.attention_norm = nn.LayerNorm(head.channels)
        self.feedforward = perceptron(head.channels, head.feedforward, head.channels, 2)
        self.feedforward_norm = nn.LayerNorm(head.channels)
        xavier(self.feedforward)

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, levels: Levels) -> Tensor:
        """Return features (B, S, C) of features and their positions (B, S, C)."""
        attended = _attend(self.attention, x + positions, references, x, levels)
        x = self.attention_norm(x + attended)
        output: Tensor = self.feedforward_norm(x + self.feedforward(x))
        return output


class Encoder(nn.Module):
    """Encoder layers, and what tells them where a place is."""

    def __init__(self, head: DINO) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(head) for _ in range(head.encoder_layers))
        self.level_embedding = nn.Parameter(torch.empty(head.levels, head.channels))
        nn.init.normal_(self.level_embedding)

    def forward(self, levels: Levels) -> Tensor:
        """Return the memory (B, S, C) that queries look at."""
        waves = sine(levels.ends.flip(-1), levels.features.shape[-1] // 2, PLACE_TEMPERATURE)
        of_levels = zip(levels.split(waves), self.level_embedding, strict=True)
        positions = torch.cat([of_level + embedding for of_level, embedding in of_levels], dim=1)
        references = levels.centres[:, :, None] * levels.valid[:, None]  # (B, S, L, 2)
        x = levels.features
        for layer in self.layers:
            x = layer(x, positions, references, levels)
        return x


class DecoderLayer(nn.Module):
    """Queries attend to each other, then to a few places around their boxes."""

    def __init__(self, head: DINO) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(head.channels, head.heads, batch_first=True)
        self.self_norm = nn.LayerNorm(head.channels)
        self.attention = _attention(head)
        self.attention_norm = nn.LayerNorm(head.channels)
        self.feedforward = perceptron(head.channels, head.feedforward, head.channels, 2)
        self.feedforward_norm = nn.LayerNorm(head.channels)
        xavier(self.self_attention)
        xavier(self.feedforward)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        references: Tensor,
        memory: Tensor,
        levels: Levels,
        mask: Tensor | None,
    ) -> Tensor:
        """Return queries (B, Q, C) of queries, their positions and boxes (B, Q, L, 4)."""
        located = x + positions
        attended, _ = self.self_attention(located, located, x, attn_mask=mask, need_weights=False)
        x = self.self_norm(x + repeatable(attended))
        attended = _attend(self.attention, x + positions, references, memory, levels)
        x = self.attention_norm(x + attended)
        output: Tensor = self.feedforward_norm(x + self.feedforward(x))
        return output


@dataclass(frozen=True)
class Queries:
    """What the decoder starts from."""

    content: Tensor
    """(B, Q, C)."""
    boxes: Tensor
    """(B, Q, 4) logits, without a gradient."""


@dataclass(frozen=True)
class Predictions:
    """What queries say, layer by layer."""

    logits: Tensor
    """(layers, B, Q, classes)."""
    boxes: Tensor
    """(layers, B, Q, 4), 0 to 1."""


class Decoder(nn.Module):
    """Decoder layers, each of which refines the boxes of the one before it."""

    def __init__(self, head: DINO, class_head: nn.Linear, box_head: nn.Sequential) -> None:
        super().__init__()
        layers = range(head.decoder_layers)
        self.layers = nn.ModuleList(DecoderLayer(head) for _ in layers)
        self.norm = nn.LayerNorm(head.channels)
        self.positions = perceptron(2 * head.channels, head.channels, head.channels, 2)
        self.class_heads = nn.ModuleList(copy.deepcopy(class_head) for _ in layers)
        self.box_heads = nn.ModuleList(copy.deepcopy(box_head) for _ in layers)
        xavier(self.positions)

    def forward(
        self, queries: Queries, memory: Tensor, levels: Levels, mask: Tensor | None
    ) -> Predictions:
        """Return every layer's predictions.

        Look forward twice (section 3.5): a layer's box adds to the box of the layer before it with
        that one's gradient, whereas the reference boxes of a layer have none.
        """
        x = queries.content
        reference = previous = queries.boxes.sigmoid()  # (B, Q, 4)
        logits, boxes = [], []
        valid = levels.valid.repeat(1, 1, 2)[:, None]  # (B, 1, L, 4)
        for layer, class_head, box_head in zip(
            self.layers, self.class_heads, self.box_heads, strict=True
        ):
            references = reference[:, :, None] * valid  # (B, Q, L, 4)
            x = layer(x, self._positions(references[:, :, 0]), references, memory, levels, mask)
            normed = self.norm(x)
            logits.append(class_head(normed))
            boxes.append((box_head(normed) + logit(previous)).sigmoid())
            previous = (box_head(x) + logit(reference)).sigmoid()
            reference = previous.detach()
        return Predictions(torch.stack(logits), torch.stack(boxes))

    def _positions(self, boxes: Tensor) -> Tensor:
        """Return positions (B, Q, C) of boxes (B, Q, 4), from waves of y, x, width, height."""
        x, y, width, height = boxes.unbind(-1)
        numbers = torch.stack([y, x, width, height], dim=-1)
        waves = sine(numbers, self.norm.weight.numel() // 2, BOX_TEMPERATURE)  # (B, Q, 2 C)
        positions: Tensor = self.positions(waves)
        return positions


class QuerySelection(nn.Module):
    """Which places of the memory the decoder's boxes start from: the surest of any class.

    Mixed query selection (section 3.4): only the boxes come from there; contents are learned.
    """

    def __init__(self, head: DINO, class_head: nn.Linear, box_head: nn.Sequential) -> None:
        super().__init__()
        self.projection = nn.Linear(head.channels, head.channels)
        self.norm = nn.LayerNorm(head.channels)
        self.class_head = class_head
        self.box_head = box_head
        self.content = nn.Parameter(torch.empty(head.queries, head.channels))
        xavier(self.projection)
        nn.init.xavier_uniform_(self.content)

    def queries(self, levels: Levels) -> int:
        """Return how many queries are asked: no more than the levels have places."""
        return min(len(self.content), levels.padding.shape[1])

    def forward(self, memory: Tensor, levels: Levels) -> tuple[Queries, Predictions]:
        """Return the queries and what was said at their places, as a layer of its own."""
        proposals, usable = _proposals(levels)
        memory = self.norm(self.projection(memory.masked_fill(~usable, 0)))  # (B, S, C)
        logits = self.class_head(memory)  # (B, S, classes)
        boxes = self.box_head(memory) + proposals  # (B, S, 4)
        count = self.queries(levels)
        selected = logits.detach().amax(-1).topk(count, dim=1).indices[..., None]  # (B, Q, 1)
        logits = logits.gather(1, selected.expand(-1, -1, logits.shape[-1]))
        boxes = boxes.gather(1, selected.expand(-1, -1, 4))
        content = self.content[:count].expand(len(boxes), -1, -1)
        return Queries(content, boxes.detach()), Predictions(logits[None], boxes.sigmoid()[None])


def _proposals(levels: Levels) -> tuple[Tensor, Tensor]:
    """Return a box at each place as logits (B, S, 4) and whether it is of use (B, S, 1).

    Logits of the others are infinite, so that what is added to them changes nothing.
    """
    sides = [PROPOSAL_SIDE * 2**level for level in range(len(levels.shapes))]
    boxes = torch.cat(
        [
            torch.cat([centres, torch.full_like(centres, side)], dim=-1)
            for centres, side in zip(levels.split(levels.centres), sides, strict=True)
        ],
        dim=1,
    )
    inside = (boxes > PROPOSAL_MARGIN) & (boxes < 1 - PROPOSAL_MARGIN)
    usable = inside.all(-1, keepdim=True)  # no place of the padding: its centre is beyond 1
    return torch.logit(boxes).masked_fill(~usable, math.inf), usable


class Transformer(nn.Module):
    """Encoder, query selection, decoder.

    Every decoder layer has heads of its own for classes and boxes, and so has the selection.
    """

    def __init__(self, head: DINO, classes: int) -> None:
        super().__init__()
        class_head = nn.Linear(head.channels, classes)
        start_at_prior(class_head.bias)
        box_head = perceptron(head.channels, head.channels, 4, 3)
        for parameter in box_head[-1].parameters():
            nn.init.zeros_(parameter)
        self.encoder = Encoder(head)
        self.decoder = Decoder(head, class_head, box_head)
        self.selection = QuerySelection(head, class_head, box_head)

    def forward(
        self, levels: Levels, denoising: Queries | None = None, mask: Tensor | None = None
    ) -> tuple[Predictions, Predictions]:
        """Return what the selection and what the decoder's layers say.

        `denoising` queries come before the selected ones in the decoder; `mask` (D + Q, D + Q) bool
        is true where a query must not attend to another.
        """
        memory = self.encoder(levels)
        queries, selected = self.selection(memory, levels)
        if denoising is not None:
            queries = Queries(
                torch.cat([denoising.content, queries.content], dim=1),
                torch.cat([denoising.boxes, queries.boxes], dim=1),
            )
        return selected, self.decoder(queries, memory, levels, mask)

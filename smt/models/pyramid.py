"""SMT as the backbone of detectors and segmenters: four levels of features, no classifier."""

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from smt.config.models import Model
from smt.models import weights
from smt.models.blocks import Block
from smt.models.layers import image
from smt.models.smt import SMT


class Trunk(nn.Module):
    """A network that gives images (B, C_i, H_i, W_i) at strides 4, 8, 16, 32 of (B, 3, H, W)."""

    widths: tuple[int, int, int, int]
    """Channels of each level."""

    def names_of(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the trunk takes over of a classifier's state, under the trunk's names."""
        return {name: value for name, value in state.items() if name not in weights.HEAD}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that never decay, beside those of the recipe."""
        return set()


class Pyramid(Trunk):
    """The trunk of an SMT; a level is the output of a stage's closing LayerNorm.

    Its tensors are named as in a classifier, which therefore starts it with all but its head.
    `mode` says what a drop-path rate means: whole branches are dropped (stochastic), or elements.
    """

    def __init__(
        self,
        model: Model,
        drop_path_rate: float,
        mode: Literal["stochastic", "dropout"] = "stochastic",
    ) -> None:
        super().__init__()
        network = SMT(model, num_classes=0, drop_path_rate=drop_path_rate)
        self.stages = network.stages
        self.widths = model.widths
        for block in self.modules():
            if isinstance(block, Block):
                block.drops_elements = mode == "dropout"

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return images (B, C_i, H_i, W_i) at strides 4, 8, 16, 32 of (B, 3, H, W)."""
        levels = []
        x = images
        for stage in self.stages:
            x = stage(x)
            levels.append(image(x))
        return levels


def start_from_classifier(trunk: Trunk, path: Path) -> None:
    """Load the weights of a classifier in `path` but for its head into a trunk: all, or none.

    Raises:
        UserError: as `weights.load` does.
    """
    weights.load_state(trunk, trunk.names_of(weights.read(path)), path)

"""The four variants against outputs of the released code in float64, to 1e-9 relative."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from smt.models import released, zoo
from smt.models.smt import SMT
from tests.helpers import golden_fill
from tests.helpers.params import project_at

GOLDEN = Path(__file__).parent / "golden"
MODELS = project_at("paper").smt_models
VARIANTS = {"t": "smt_tiny", "s": "smt_small", "b": "smt_base", "l": "smt_large"}
RTOL = 1e-9
ATOL = 1e-12
"""For values that are 0 but for rounding, such as the gradient of a bias before softmax."""


# The large variant is the base one with more blocks and channels, and takes as long as the others.
@pytest.fixture(
    scope="module",
    params=[*list(VARIANTS)[:3], pytest.param("l", marks=pytest.mark.slow)],
)
def golden(request):
    return json.loads((GOLDEN / f"smt_{request.param}.json").read_text())


@pytest.fixture(scope="module")
def released_weights(golden):
    """The released state, which takes seconds to fill."""
    return golden_fill.weights(golden["keys"])


@pytest.fixture
def model(golden, released_weights):
    network = zoo.build(MODELS[VARIANTS[golden["variant"]]], num_classes=1000).double()
    network.load_state_dict(
        released.from_released(released_weights, network.state_dict(), Path("golden"))
    )
    return network


def close(value, expected):
    assert torch.as_tensor(value).tolist() == pytest.approx(expected, rel=RTOL, abs=ATOL)


def test_names_and_shapes_are_the_released_ones(golden, model):
    ours = released.to_released(model.state_dict())
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == golden["keys"]
    assert sum(tensor.numel() for tensor in model.parameters()) == golden["parameters"]


def test_logits_and_stage_outputs(golden, model: SMT):
    model.eval()
    for case in golden["cases"]:
        images = golden_fill.images(case["batch"], case["resolution"])
        with torch.inference_mode():
            last, stages = model.forward_intermediates(images)
            logits = model.forward_head(last)
        close(logits[:, :8].flatten(), list(chain(*case["logits_first8"])))
        close(logits.norm(), case["logits_l2"])
        assert logits.argmax(1).tolist() == case["argmax"]
        for stage, expected in zip(stages, case["stages"], strict=True):
            tokens = stage.flatten(2).transpose(1, 2)
            assert list(tokens.shape) == expected["shape_b_n_c"]
            close(tokens.flatten()[:4], expected["first4"])
            close(tokens.flatten()[-4:], expected["last4"])
            close(tokens.mean(), expected["mean"])
            close(tokens.std(), expected["std"])


def test_loss_gradients_and_running_means(golden, model: SMT):
    case = golden["train_case"]
    model.train()
    logits = model(golden_fill.images(case["batch"], case["resolution"]))
    loss = F.cross_entropy(logits, torch.tensor(case["labels"]))
    loss.backward()
    close(loss.detach(), case["loss"])
    gradients = released.to_released(
        {name: parameter.grad for name, parameter in model.named_parameters()}
    )
    assert gradients.keys() == case["grad_l2"].keys()
    for name, expected in case["grad_l2"].items():
        assert gradients[name].norm().item() == pytest.approx(expected, rel=RTOL, abs=ATOL)
    state = released.to_released(model.state_dict())
    for name, expected in case["bn_running_mean_l2_after"].items():
        close(state[name].norm(), expected)

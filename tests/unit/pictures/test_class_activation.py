"""Grad-CAM, where it has a closed form and where a class has evidence in one place."""

import pytest
import torch

from smt.errors import UserError
from smt.models import zoo
from smt.pictures.class_activation import class_activation
from tests.helpers.params import project_at

DEMO = project_at("demo").models


def network(classes=10):
    torch.manual_seed(0)
    model = zoo.build(DEMO["smt_tiny"], num_classes=classes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_of_the_last_stage_it_is_the_class_activation_map_of_the_linear_head():
    model, images = network(), torch.randn(2, 3, 128, 160)
    found = class_activation(model, images)
    with torch.no_grad():
        logits = model(images)
        features = model.forward_features(images)  # (2, C, 4, 5)
    assert found.stage == 4
    assert torch.equal(found.classes, logits.argmax(1))
    torch.testing.assert_close(found.probabilities, logits.softmax(1).amax(1))
    # Pooling is a mean over 20 positions, so the gradient is the class's weights over 20.
    rows = model.head.weight[found.classes] / 20
    expected = torch.einsum("bc,bchw->bhw", rows, features).relu()
    torch.testing.assert_close(found.maps, expected.detach())


def test_a_class_of_the_users_choice():
    model, images = network(), torch.randn(2, 3, 128, 128)
    found = class_activation(model, images, 7)
    assert found.classes.tolist() == [7, 7]
    assert not torch.equal(found.maps, class_activation(model, images, 3).maps)


@pytest.mark.parametrize(("size", "stage"), [(128, 4), (64, 3), (48, 2), (32, 2)])
def test_small_images_show_the_last_stage_that_has_four_positions_a_side(size, stage):
    found = class_activation(network(), torch.randn(1, 3, size, size))
    assert found.stage == stage and min(found.maps.shape[1:]) >= 4


def test_a_class_that_is_not_there_and_weights_without_a_classifier_are_refused():
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(UserError, match="class 10: valid: 0 to 9"):
        class_activation(network(), images, 10)
    with pytest.raises(UserError, match="no classifier"):
        class_activation(network(classes=0), images)

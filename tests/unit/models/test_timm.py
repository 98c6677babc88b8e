"""SMT through timm's interface, as users of timm expect it of any backbone."""

import pytest
import timm
import torch

from smt.models import released, zoo
from tests.helpers.params import project_at

DEMO = project_at("demo").smt_models


def demo(name="smt_tiny", **options):
    torch.manual_seed(0)
    return zoo.build(DEMO[name], **{"num_classes": 10, **options})


def test_every_model_of_params_has_its_name_in_timm():
    paper = project_at("paper").smt_models
    assert set(paper) <= set(timm.list_models("smt_*"))


def test_create_model_takes_the_usual_arguments():
    model = timm.create_model("smt_tiny", num_classes=7, in_chans=4, drop_path_rate=0.2)
    assert model(torch.randn(1, 4, 64, 64)).shape == (1, 7)
    rates = [block.drop_path_rate for stage in model.stages for block in stage.blocks]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.2) and rates == sorted(rates)


def test_features_only_gives_the_stages_of_out_indices():
    model = timm.create_model("smt_tiny", features_only=True, out_indices=(1, 3))
    assert model.feature_info.channels() == [128, 512]
    assert model.feature_info.reduction() == [8, 32]
    outputs = model(torch.randn(2, 3, 64, 96))
    assert [tuple(output.shape) for output in outputs] == [(2, 128, 8, 12), (2, 512, 2, 3)]


@pytest.mark.parametrize("naming", ["ours", "released"])
def test_pretrained_files_load_in_both_namings(tmp_path, naming):
    source = timm.create_model("smt_tiny", num_classes=5)
    state = source.state_dict() if naming == "ours" else released.to_released(source.state_dict())
    torch.save({"model": state}, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    model = timm.create_model(
        "smt_tiny", pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay
    )
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (100, 64), (57, 224)])
def test_images_of_any_size_from_32_pixels(size):
    model = demo().eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 3, *size)).shape == (2, 10)


def test_forward_is_forward_head_of_forward_features():
    model = demo().eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        features = model.forward_features(images)
        torch.testing.assert_close(model.forward_head(features), model(images))
        pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features)


def test_reset_classifier():
    model = demo().eval()
    images = torch.randn(2, 3, 32, 32)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5) and model.num_classes == 5
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)


def test_gradient_checkpointing_changes_no_gradient_and_no_statistic():
    plain, checkpointed = (demo("smt_large", drop_path_rate=0.3) for _ in range(2))
    checkpointed.set_grad_checkpointing()
    images = torch.randn(4, 3, 32, 32)
    for model in (plain, checkpointed):
        torch.manual_seed(1)  # drop path has to draw the same branches when a block is recomputed
        model.train()
        model(images).square().sum().backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), checkpointed.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    for (name, one), (_, other) in zip(
        plain.named_buffers(), checkpointed.named_buffers(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_layout_stays_channels_last_from_stem_to_head():
    model = demo().eval().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    _, stages = model.forward_intermediates(images)
    for stage in stages:
        assert stage.is_contiguous(memory_format=torch.channels_last)


def test_drop_path_drops_whole_branches_in_training_only():
    model = demo(drop_path_rate=0.5)
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    torch.manual_seed(1)
    first = model(images)
    torch.manual_seed(2)
    assert not torch.equal(first, model(images))


def test_drop_path_decides_for_each_image_by_itself():
    """A dropped branch leaves its image as it was; one that is kept counts 1 / (1 - rate)."""
    block = demo(drop_path_rate=0.5).stages[-1].blocks[-1]
    x, branch = torch.randn(2, 64, 2, 2, 5)
    change = block.train()._add(x, branch, None) - x
    kept = change.flatten(1).abs().amax(1) > 0
    assert 0 < kept.sum() < len(x)
    scaled = branch / (1 - block.drop_path_rate)
    torch.testing.assert_close(change[kept], scaled[kept], rtol=1e-4, atol=1e-5)

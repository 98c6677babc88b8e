"""Parameters and multiply-accumulates of every model, to each digit that the reference gives."""

import json

import pytest

from smt.commands import profile as profile_command
from smt.config.peers import peer_size_name, timm_names
from smt.config.project import Project
from smt.models import profile
from smt.models.timm_network import Refusal
from smt.runs.paths import Layout
from tests.helpers.in_process import smt
from tests.helpers.params import project_at

PAPER = project_at("paper")
MODELS = PAPER.models

# Parameters M, conv + linear G, with attention G, thop G at 224. The reference has 2.3802 for the
# first conv + linear: the difference of its rounded 2.4613 and 0.0811, where the sum is 2.380134.
VARIANTS = {
    "smt_tiny": (11.506536, 2.3801, 2.4613, 2.401),
    "smt_small": (22.550952, 4.6569, 4.8388, 4.690),
    "smt_base": (32.037352, 7.6856, 7.9659, 7.732),
    "smt_large": (80.620264, 17.4793, 17.9071, 17.549),
}
ABLATIONS = {  # parameters M, counted as published G, with attention G at 224
    "smt_tiny_heads_1": (11.453, 2.369, 2.431),
    "smt_tiny_heads_2": (11.467, 2.377, 2.439),
    "smt_tiny": (11.507, 2.399, 2.461),
    "smt_tiny_heads_6": (11.573, 2.438, 2.500),
    "smt_tiny_heads_8": (11.630, 2.470, 2.532),
    "smt_tiny_stage3_half": (11.507, 2.399, 2.461),
    "smt_tiny_stage3_sam": (11.816, 2.460, 2.442),
    "smt_tiny_stage3_msa": (11.197, 2.338, 2.480),
    "smt_tiny_aggregation_none": (10.879, 2.182, 2.249),
    "smt_tiny_aggregation_conv1x1": (11.184, 2.285, 2.352),
    "smt_tiny_aggregation_dense": (11.491, 2.390, 2.455),
    "smt_tiny_aggregation_no_grouping": (12.102, 2.598, 2.660),
}
ROUNDED = 6e-4
"""Half a unit of the last digit, and a little: 12.101480 stands as 12.102 and 2.480536 as 2.480."""


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    parameters, conv_linear, attention, thop = VARIANTS[name]
    counts = profile.count(MODELS[name], 224)
    assert profile.parameters(MODELS[name]) / 1e6 == pytest.approx(parameters, abs=5e-7)
    assert counts.conv_linear / 1e9 == pytest.approx(conv_linear, abs=5e-5)
    assert counts.attention / 1e9 == pytest.approx(attention, abs=5e-5)
    assert counts.thop / 1e9 == pytest.approx(thop, abs=5e-4)


def test_the_large_variant_at_384():
    counts = profile.count(MODELS["smt_large"], 384)
    assert counts.conv_linear / 1e9 == pytest.approx(51.3663, abs=5e-5)
    assert counts.reported / 1e9 == pytest.approx(51.58, abs=5e-3)
    assert counts.attention / 1e9 == pytest.approx(55.06, abs=5e-3)


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(name):
    parameters, reported, attention = ABLATIONS[name]
    counts = profile.count(MODELS[name], 224)
    assert profile.parameters(MODELS[name]) / 1e6 == pytest.approx(parameters, abs=ROUNDED)
    assert counts.reported / 1e9 == pytest.approx(reported, abs=ROUNDED)
    assert counts.attention / 1e9 == pytest.approx(attention, abs=ROUNDED)


def test_sam_in_every_stage_has_the_size_of_the_reference():
    everywhere = MODELS["smt_tiny"].model_copy(update={"mixers": ("sam",) * 4})
    counts = profile.count(everywhere, 224)
    assert profile.parameters(everywhere) / 1e6 == pytest.approx(12.102, abs=ROUNDED)
    assert counts.reported / 1e9 == pytest.approx(2.474, abs=5e-4)
    assert counts.attention / 1e9 == pytest.approx(2.453, abs=5e-4)


def test_the_published_size_of_the_small_variant_is_that_of_one_block_less():
    shorter = MODELS["smt_small"].model_copy(update={"depths": (3, 4, 18, 1)})
    difference = profile.parameters(MODELS["smt_small"]) - profile.parameters(shorter)
    assert difference == 2_118_144
    assert profile.parameters(shorter) / 1e6 == pytest.approx(20.5, abs=0.1)


def sizes_by_command(target):
    """Return the JSON of `smt profile`, and check its printed table."""
    result = smt("profile", "--scale", "paper", "--json", target)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if " smt_small " in line)
    assert "22.550952" in line and "20.5" in line and "+2.051" in line
    line = next(line for line in result.stdout.splitlines() if " upernet.smt_base " in line)
    assert "512 x 2048" in line and " 62 " in line and " 1004 " in line
    return json.loads(target.read_text())


@pytest.mark.parametrize(
    ("name", "params_m", "gmacs"),
    [("swin_tiny_patch4_window7_224", 28.3, 4.5), ("convnext_tiny", 28.6, 4.5),
     ("deit_small_patch16_224", 22.1, 4.6)],
)  # fmt: skip
def test_models_of_timm_have_their_published_size_with_attention(name, params_m, gmacs):
    """Their own papers print these; MACs of attention's products are among them."""
    counts, parameters = profile.count_timm(name, 224)
    assert (round(parameters / 1e6, 1), round(counts.attention / 1e9, 1)) == (params_m, gmacs)


def test_a_model_of_timm_that_takes_no_images_of_this_size_is_refused():
    with pytest.raises(Refusal, match=r"refuses images of 100 x 100: .*; name a model that takes"):
        profile.count_timm("maxvit_tiny_tf_224", 100)


def test_profile_prints_the_published_figure_and_the_difference(tmp_path, monkeypatch):
    names = {"imagenet1k_smt_small", "imagenet1k_smt_base", "ade20k_upernet_smt_base"}
    selection = {
        "models": {name: MODELS[name] for name in ("smt_small", "smt_base")},
        "experiments": {name: PAPER.experiments[name] for name in names},
        "peer_tables": {},
    }
    everything = {name: getattr(PAPER, name) for name in Project.model_fields}
    project = Project.model_construct(**everything | selection)
    monkeypatch.setattr(profile_command, "load", lambda scale: (project, Layout(scale)))
    sizes = sizes_by_command(tmp_path / "sizes.json")
    assert set(sizes) == {"smt_small", "smt_base", "upernet.smt_base"}
    assert sizes["smt_base"]["params"] == 32_037_352
    assert set(sizes["smt_base"]["macs"]) == {"224"}


@pytest.mark.slow
def test_profile_counts_every_model_and_every_system(tmp_path):
    sizes = sizes_by_command(tmp_path / "sizes.json")
    peers = {peer_size_name(name) for name in timm_names(PAPER.peer_tables)}
    assert (len(PAPER.systems), len(peers)) == (9, 10)
    assert set(sizes) == {*MODELS, *PAPER.systems, *peers}
    assert sizes["smt_large"]["params"] == 80_620_264
    assert set(sizes["smt_large"]["macs"]) == {"224", "384"}

"""Makes a scale of params as small as scale smoke."""

from pathlib import Path

import yaml

from smt.config.load import _merge as merge

SMOKE = "smoke"
LABELS = ("title", "notice")


def make_small(params: Path, scale: str) -> None:
    """Give `scale` the content of scale smoke, but for its title and notice."""

    def change_scales(content):
        smoke = {key: value for key, value in content[SMOKE].items() if key != "base"}
        labels = {key: content[scale][key] for key in LABELS}
        content[scale] = merge(merge(content[content[SMOKE]["base"]], smoke), labels)

    def change_cluster(content):
        content["scales"][scale] = content["scales"][SMOKE]

    _change(params / "scales.yaml", change_scales)

    def change_sizes(content):
        content[scale] = content[SMOKE]

    _change(params / "cluster.yaml", change_cluster)
    _change(params / "sizes.yaml", change_sizes)


def _change(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))

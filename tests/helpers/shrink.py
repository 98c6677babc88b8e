"""Params cut down to a few experiments, and demo data sets to a few digits and scenes."""

import re
from pathlib import Path

import yaml

from smt.datasets.demo import scenes

TRAIN, VAL = 32, 9
"""Scenes of a data set that is cut down."""


def keep(params: Path, names):
    """Leave of `params` the experiments `names`, what they start from, and what is said of them.

    An experiment has what its base gave it, whether that is left or not. Tables without a row go.
    """
    experiments = _read(params, "experiments")["experiments"]
    names = _with_ancestors(experiments, names)
    kept = {name: _own(experiments, name, names) for name in experiments if name in names}
    every, left = (_systems(experiments, each) for each in (experiments, names))
    cuts = {
        "experiments": lambda content: content.update(experiments=kept),
        "tables": lambda content: _cut_tables(content, names),
        "reported": lambda content: _cut_reported(content, names, left),
        "scales": lambda content: _cut_scales(content, names),
        "cluster": lambda content: _cut_cluster(content, names),
        "trajectory": lambda content: _cut_points(content, names),
        "drift": lambda content: _cut_discrepancies(content, every - left),
    }
    for file, cut in cuts.items():
        content = _read(params, file)
        cut(content)
        _write(params, file, content)


RECIPES = {"recipes": "recipes", "detection": "detection_recipes",
           "segmentation": "segmentation_recipes"}  # fmt: skip
"""Section of the recipes in each of their files."""


def keep_used(params: Path):
    """Leave of `params` what its experiments use, with what that is based on, and the variants.

    Most of the time that it takes to measure sizes goes to the other models, and DVC reads all of
    it again and again.
    """
    experiments = _read(params, "experiments")["experiments"]
    used = [_merged(experiments, name) for name in experiments]
    models = {*(each["model"] for each in used), *_read(params, "reported")["models"]}
    heads, recipes = ({each[key] for each in used if key in each} for key in ("head", "recipe"))
    scales, gone = _read(params, "scales"), set()
    sections = {"models": ("models", models), "heads": ("heads", heads)}
    sections |= {file: (section, recipes) for file, section in RECIPES.items()}
    for file, (section, names) in sections.items():
        content = _read(params, file)
        left = _with_bases(content[section], names & content[section].keys())
        gone |= content[section].keys() - left
        content[section] = _only(content[section], left)
        _write(params, file, content)
        for scale in scales.values():
            if section in scale:
                scale[section] = _only(scale[section], {"*", *left})
    discrepancies = _read(params, "drift")
    _cut_discrepancies(discrepancies, gone)
    _write(params, "scales", scales)
    _write(params, "drift", discrepancies)


def cut_down_scenes(demo):
    """Leave COCO and ADE20K of a demo's entry of scales.yaml a few images."""
    for name in ("coco", "ade20k"):
        demo["datasets"][name].update(train_images=TRAIN, val_images=VAL)
    demo["datasets"]["coco"].update(images_with_objects=scenes.count_with_objects(TRAIN))


def cut_down_digits(demo):
    """Leave ImageNet of a demo's entry of scales.yaml a third of its images, or less."""
    for name, train in (("imagenet1k", 1200), ("imagenet22k", 2000)):
        demo["datasets"][name].update(train_images=train, val_images=200)


def _read(params, file):
    return yaml.safe_load((params / f"{file}.yaml").read_text())


def _write(params, file, content):
    (params / f"{file}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _with_bases(entries, names):
    found = set()
    for name in names:
        while name is not None and name not in found:
            found.add(name)
            name = entries[name].get("base")
    return found


def _with_ancestors(experiments, names):
    found = set()
    for name in names:
        while name is not None and name not in found:
            found.add(name)
            name = (_merged(experiments, name).get("start") or {}).get("experiment")
    return found


def _merged(experiments, name):
    """Return an experiment's entry with what its bases give."""
    own = dict(experiments[name])
    base = own.pop("base", None)
    return own if base is None else _laid(_merged(experiments, base), own)


def _laid(below, above):
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _laid(below.get(key), value) for key, value in above.items()}}


def _own(experiments, name, names):
    """Return an entry as it is if its base is left, and otherwise with what the base gives."""
    is_left = experiments[name].get("base", name) in names
    return experiments[name] if is_left else _merged(experiments, name)


def _systems(experiments, names):
    entries = [_merged(experiments, name) for name in names]
    return {f"{each['head']}.{each['model']}" for each in entries if "head" in each}


def _cut_tables(content, names):
    tables = content["tables"]
    for name, table in list(tables.items()):
        table["rows"] = [row for row in table["rows"] if row["experiment"] in names]
        if table.get("baseline") not in names:
            table.pop("baseline", None)
        if not table["rows"]:
            del tables[name]


def _cut_reported(content, names, systems):
    content["experiments"] = _only(content["experiments"], names)
    content["systems"] = _only(content["systems"], systems)


def _cut_scales(content, names):
    for scale in content.values():
        if "experiments" in scale:
            scale["experiments"] = _only(scale["experiments"], {"*", *names})
        proof = scale.get("proof")
        if proof and "runs" in proof:
            runs = [run for run in proof["runs"] if run["experiment"] in names]
            scale["proof"] = proof | {"runs": runs} if runs else None
        elif proof and content[scale["base"]]["proof"] is None:
            scale["proof"] = None


def _cut_cluster(content, names):
    for share in content["scales"].values():
        if "experiments" in share:
            share["experiments"] = _only(share["experiments"], names)
    for kind in content["kinds"].values():
        if "recompute" in kind:
            kind["recompute"] = [name for name in kind["recompute"] if name in names]


def _cut_points(content, names):
    content["points"] = {scale: _only(each, names) for scale, each in content["points"].items()}


def _cut_discrepancies(content, gone):
    def names_one(finding):
        places = re.findall(r"\{([\w.]+)\.\w+\}", finding["ours"])
        return any(place in gone for place in places)

    content["discrepancies"] = [each for each in content["discrepancies"] if not names_one(each)]


def _only(entries, names):
    return {name: entry for name, entry in entries.items() if name in names}

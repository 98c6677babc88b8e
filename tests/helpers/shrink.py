"""Reduces params to a few experiments, and the demo's data sets to a few images."""

import re
from pathlib import Path

import yaml

from smt.datasets.demo import scenes

MEASURED_PEER = "pvt_v2_b1"
"""Model of timm whose size is still measured in a small project."""

TRAIN, VAL = 32, 9
"""Images of a reduced data set of scenes."""


def keep(params: Path, names):
    """Remove all experiments from `params` but `names` and their parents, with all mentions.

    An experiment whose base is removed gets the base's values. Tables without rows are removed.
    """
    experiments = _read(params, "experiments")["experiments"]
    names = _with_ancestors(experiments, names)
    remaining = {name: _own(experiments, name, names) for name in experiments if name in names}
    all_systems, systems = (_systems(experiments, it) for it in (experiments, names))
    cuts = {
        "experiments": lambda content: content.update(experiments=remaining),
        "tables": lambda content: _cut_tables(content, names),
        "released": lambda content: content.update(released=_only(content["released"], names)),
        "reported": lambda content: _cut_reported(content, names, systems),
        "scales": lambda content: _cut_scales(content, names),
        "cluster": lambda content: _cut_cluster(content, names),
        "trajectory": lambda content: _cut_points(content, names),
        "drift": lambda content: _cut_discrepancies(
            content, all_systems - systems | experiments.keys() - names
        ),
        "peers": lambda content: _cut_peers(content, names),
        "claims": lambda content: _cut_claims(
            content, experiments.keys() - names, all_systems - systems
        ),
    }
    for file, cut in cuts.items():
        content = _read(params, file)
        cut(content)
        _write(params, file, content)
    _cut_throughput(params)


RECIPES = {"recipes": "recipes", "detection": "detection_recipes",
           "segmentation": "segmentation_recipes"}  # fmt: skip
"""File of recipes -> its section."""


def keep_used(params: Path):
    """Remove models, heads and recipes from `params` that no experiment or published number uses.

    Otherwise measuring sizes takes most of the time of a small project.
    """
    experiments = _read(params, "experiments")["experiments"]
    entries = [_merged(experiments, name) for name in experiments]
    models = {str(entry["model"]) for entry in entries} | {*_read(params, "reported")["models"]}
    heads, recipes = ({it[key] for it in entries if key in it} for key in ("head", "recipe"))
    scales, removed = _read(params, "scales"), set()
    sections = {"models": ("models", models), "heads": ("heads", heads)}
    sections |= {file: (section, recipes) for file, section in RECIPES.items()}
    for file, (section, names) in sections.items():
        content = _read(params, file)
        remaining = _with_bases(content[section], names & content[section].keys())
        removed |= content[section].keys() - remaining
        content[section] = _only(content[section], remaining)
        _write(params, file, content)
        for scale in scales.values():
            if section in scale:
                scale[section] = _only(scale[section], {"*", *remaining})
    peers = _read(params, "peers")
    for table in peers["peer_tables"].values():
        for peer in table["peers"].values():
            if peer.get("timm") != MEASURED_PEER:
                peer.pop("timm", None)
    _write(params, "peers", peers)
    discrepancies = _read(params, "drift")
    _cut_discrepancies(discrepancies, removed)
    _write(params, "scales", scales)
    _write(params, "drift", discrepancies)


def cut_down_scenes(demo):
    """Reduce COCO and ADE20K in the demo's entry of scales.yaml to a few images."""
    for name in ("coco", "ade20k"):
        demo["datasets"][name].update(train_images=TRAIN, val_images=VAL)
    demo["datasets"]["coco"].update(images_with_objects=scenes.count_with_objects(TRAIN))


def cut_down_digits(demo):
    """Reduce ImageNet in the demo's entry of scales.yaml to a third of its images, or less."""
    for name, train in (("imagenet1k", 1200), ("imagenet22k", 2000)):
        demo["datasets"][name].update(train_images=train, val_images=200)


def _read(params, file):
    return yaml.safe_load((params / f"{file}.yaml").read_text())


def _write(params, file, content):
    (params / f"{file}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _with_bases(entries, names):
    return _closure(names, lambda name: entries[name].get("base"))


def _with_ancestors(experiments, names):
    return _closure(
        names, lambda name: (_merged(experiments, name).get("start") or {}).get("experiment")
    )


def _closure(names, parent):
    """Return names with all of their ancestors."""
    result = set()
    for name in names:
        while name is not None and name not in result:
            result.add(name)
            name = parent(name)
    return result


def _merged(experiments, name):
    """Return an experiment's entry with the values of its bases."""
    own = dict(experiments[name])
    base = own.pop("base", None)
    return own if base is None else _overlay(_merged(experiments, base), own)


def _overlay(below, above):
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{key: _overlay(below.get(key), value) for key, value in above.items()}}


def _own(experiments, name, names):
    """Return an entry, with the values of its base if that is removed."""
    has_base = experiments[name].get("base", name) in names
    return experiments[name] if has_base else _merged(experiments, name)


def _systems(experiments, names):
    entries = [_merged(experiments, name) for name in names]
    return {f"{entry['head']}.{entry['model']}" for entry in entries if "head" in entry}


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


def _cut_peers(content, names):
    tables = content["peer_tables"]
    for name, table in list(tables.items()):
        table["experiments"] = [it for it in table["experiments"] if it in names]
        if not table["experiments"]:
            del tables[name]
        for peer in table["peers"].values():
            if peer.get("experiment") not in names:
                peer.pop("experiment", None)


def _cut_throughput(params):
    """Remove the speeds of others whose table was removed."""
    tables, reported = _read(params, "peers")["peer_tables"], _read(params, "reported")
    speeds = reported["throughput"]
    reported["throughput"] = {
        name: speed
        for name, speed in speeds.items()
        if "." not in name or name.partition(".")[0] in tables
    }
    _write(params, "reported", reported)


def _cut_claims(content, *removed):
    """Remove claims about removed experiments and systems, and what has no numbers of its own."""
    owners = {owner for names in removed for owner in names}

    def is_about_removed(claim):
        numbers = re.findall(r"[a-z][\w]*(?:\.\w+)+", claim["formula"])
        return any(number.rpartition(".")[0] in owners for number in numbers)

    content["claims"] = {
        name: claim for name, claim in content["claims"].items() if not is_about_removed(claim)
    }


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
    content["points"] = {scale: _only(it, names) for scale, it in content["points"].items()}


def _cut_discrepancies(content, removed):
    def refers_to_removed(discrepancy):
        text = discrepancy["ours"] + discrepancy.get("released", "")
        places = re.findall(r"\{([\w.]+)\.\w+\}", text)
        return any(place in removed for place in places)

    content["discrepancies"] = [it for it in content["discrepancies"] if not refers_to_removed(it)]


def _only(entries, names):
    return {name: entry for name, entry in entries.items() if name in names}

"""A figure as SVG inside a page: text stays text, and colours follow the page's dark mode."""

import io
import re
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup

from smt.report.plot_style import PALETTE, Plot, style

_NAMES = {light: name for name, (light, _) in PALETTE.items()}
_NO_METADATA: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(plot: Plot) -> Markup:
    """Return the figure as one `svg` element that loads nothing.

    Its colours are variables of the page's style sheet, and its marks have their values as titles.
    """
    file = io.BytesIO()
    with style(plot.name, **{"svg.fonttype": "none"}):
        plot.figure.savefig(file, format="svg", metadata=_NO_METADATA, transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        _simplify(element)
    _add_titles(root, plot)
    _drop_ids(root)
    text = "; ".join((plot.title, *plot.lines))
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": text}
    svg = ElementTree.tostring(root, encoding="unicode")
    return Markup(re.sub(r"#[0-9a-f]{6}\b", _variable, svg))


def _simplify(element: Element) -> None:
    """Remove namespaces, clipping and styles of a whole document, which a page does not need."""
    element.tag = element.tag.split("}")[-1]
    element.attrib = {key.split("}")[-1]: value for key, value in element.attrib.items()}
    element.attrib.pop("clip-path", None)
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for key in ("d", "x", "y"):
        if key in element.attrib:
            element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[key]))
    element.tail = None
    if element.text is not None and not element.text.strip():
        element.text = None
    for child in list(element):
        if child.tag.split("}")[-1] in ("style", "metadata", "clipPath"):
            element.remove(child)


def _add_titles(root: Element, plot: Plot) -> None:
    """Give each mark its text, which a browser shows under a mouse."""
    groups = {group.get("id"): group for group in root.iter("g")}
    for artist, texts in plot.hovers.items():
        group = groups[artist.get_gid()]
        marks = list(group.iter("use")) or list(group.iter("path"))
        for mark, text in zip(marks, texts, strict=True):
            title = Element("title")
            title.text = text
            mark.insert(0, title)
            if artist.get_alpha() == 0:
                mark.attrib.pop("style", None)  # the style sheet's: it shows the mark under a mouse
        if artist.get_alpha() == 0:
            group.set("class", "hover")
            for path in group.iter("path"):
                path.attrib.pop("style", None)


def _drop_ids(root: Element) -> None:
    """Leave only the ids that are referred to: matplotlib's are the same in every figure."""
    used = {element.get("href") for element in root.iter("use")}
    for element in root.iter():
        if f"#{element.get('id')}" not in used:
            element.attrib.pop("id", None)


def _variable(match: re.Match[str]) -> str:
    name = _NAMES.get(match[0])
    return f"var(--{name})" if name else match[0]

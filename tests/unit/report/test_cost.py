"""Models of others by published accuracy and cost: the figure, and peers that are trained here."""

from matplotlib.text import Text

from smt.report import figures, plots
from smt.report.peers import PeerGrid
from tests.unit.report.test_claims import TINY, project_of, results

FIGURE = figures.cost_name("peers_imagenet1k")
SIZES = {"smt_tiny": (11.507, 2.4), "timm.convnext_tiny": (28.589, 4.464)}


def test_models_of_others_are_plotted_by_measured_macs_or_by_published_ones():
    models = {it.label: it for it in figures.published_models(results(sizes=SIZES), FIGURE)}
    table = project_of().peer_tables["peers_imagenet1k"]
    assert len(models) == len(table.peers) + len(table.experiments)
    convnext, focal, tiny = models["ConvNeXt-T"], models["Focal-T"], models["SMT-T"]
    assert (convnext.gmacs, convnext.is_measured, convnext.score) == (4.464, True, 82.1)
    assert (focal.gmacs, focal.is_measured, focal.is_smt) == (4.9, False, False)
    assert (tiny.gmacs, tiny.is_measured, tiny.is_smt, tiny.score) == (2.4, True, True, 82.2)


def test_every_table_of_peers_has_its_figure_with_every_name_once():
    for table in project_of().peer_tables:
        plot = plots.plot(results(), figures.cost_name(table))
        models = figures.published_models(results(), figures.cost_name(table))
        (axes,) = plot.figure.axes
        names = [text.get_text() for text in axes.texts]
        assert sorted(names) == sorted(model.label for model in models)
        assert all("published" in line for line in plot.lines)


def test_names_cover_no_marker_and_no_other_name():
    plot = plots.plot(results(), FIGURE)
    (axes,) = plot.figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    markers = [axes.transData.transform(line.get_xydata()[0])
               for line in axes.lines if len(line.get_xydata())]  # fmt: skip
    assert len(markers) == len(boxes)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert not any(box.contains(*marker) for marker in markers)


def test_a_peer_that_is_trained_here_has_its_result_in_its_row():
    grid = PeerGrid("peers_imagenet1k", results({"imagenet1k_swin_tiny": (81.0,), TINY: ()})).grid()
    (swin,) = (row for row in grid.rows if row[0].text.startswith("Swin-T"))
    assert swin[0].text == "Swin-T (here: Swin-T of timm, a peer)"
    assert [cell.text for cell in swin[-2:]] == ["81.3 [a]", "81.00"]

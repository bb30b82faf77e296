"""Plots show what they were given: the data in the artists, not pixels."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows
from matplotlib.colors import to_hex

import clipconformity as cc
from clipconformity import plots
from clipconformity.functional import ShiftSweep
from clipconformity.metrics.base import SetMetric

mpl.use("Agg")
DIM = 6


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def image(generator):
    return ellipsoid_rows(300, DIM, generator)


@pytest.fixture
def text(generator):
    return ellipsoid_rows(200, DIM, generator, offset=-1.0)


def fed(metric, *batch):
    metric.update(*batch)
    return metric


def densities(ax) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {patch.get_label(): tuple(np.asarray(x) for x in patch.get_data()[:2]) for patch in ax.patches}


def expected(values: torch.Tensor, edges: np.ndarray) -> np.ndarray:
    return np.histogram(values.double().numpy(), edges)[0] / len(values) / np.diff(edges)


def points(ax) -> dict[str, np.ndarray]:
    return {each.get_label(): np.asarray(each.get_offsets()) for each in ax.collections}


def line(ax, number: int = 0) -> tuple[list[float], list[float]]:
    return tuple([float(v) for v in part] for part in ax.lines[number].get_data())


def test_runs_lie_over_the_reference_in_common_cells(generator):
    first, second, reference = (torch.randn(n, generator=generator) for n in (50, 80, 100))
    _, ax = plots.distributions({"a": first, "b": second}, reference)
    drawn = densities(ax)
    assert list(drawn) == ["reference", "a", "b"]
    for values, (density, edges) in zip((reference, first, second), drawn.values(), strict=True):
        assert density == pytest.approx(expected(values, edges))
        assert (density * np.diff(edges)).sum() == pytest.approx(1)


def test_equal_values_still_have_a_cell():
    _, ax = plots.distributions({"a": torch.full((5,), 0.5)})
    density, edges = densities(ax)["a"]
    assert (density * np.diff(edges)).sum() == pytest.approx(1)


def test_no_run_beside_another_has_the_colour_of_a_modality(generator):
    values = torch.randn(50, generator=generator)
    _, ax = plots.distributions({str(n): values + n for n in range(8)}, modality="image")
    looks = [(to_hex(p.get_edgecolor()).upper(), p.get_linestyle()) for p in ax.patches]
    assert not {plots.COLORS["image"], plots.COLORS["text"]} & {color for color, _ in looks}
    assert len(set(looks)) == 8
    _, ax = plots.distributions({"only": values}, modality="image")
    assert to_hex(ax.patches[0].get_edgecolor()).upper() == plots.COLORS["image"]


def test_a_modality_keeps_its_colour(image, text):
    _, ax = plots.shells(image, text)
    found = {each.get_label(): to_hex(each.get_facecolor()[0]).upper() for each in ax.collections}
    assert found == {name: plots.COLORS[name] for name in ("image", "text")}
    _, ax = plots.covariance_spectrum({"image": torch.ones(3), "text": torch.ones(3)})
    assert [ax.lines[n].get_color() for n in (0, 2)] == [plots.COLORS["image"], plots.COLORS["text"]]


def test_a_series_shows_values_intervals_and_floor():
    values, low, high = [0.3, 0.1, 0.2], [0.2, 0.05, 0.2], [0.5, 0.2, 0.4]
    _, ax = plots.series(values, low, high, floor=0.07, steps=[0, 10, 50])
    x, y = line(ax)
    assert y == pytest.approx(values)
    assert x == pytest.approx([0, 10, 50])
    bars = ax.containers[0].lines[2][0].get_segments()
    assert np.asarray(bars)[:, :, 1] == pytest.approx(np.asarray([low, high]).T)
    floor = next(each for each in ax.lines if each.get_label() == "noise floor")
    assert {float(v) for v in floor.get_ydata()} == {0.07}
    assert "nats" in ax.get_ylabel()


@pytest.mark.parametrize("runs", [False, True])
def test_a_forest_shows_values_intervals_own_floors_and_the_margin(runs):
    values, low, high = [0.3, 0.1, 0.2], [0.2, 0.05, 0.2], [0.5, 0.2, 0.4]
    _, ax = plots.forest(
        values, low, high, ["a", "b", "c"], quantity="x", floors=[0.01, None, 0.02], null=1.0, margin=0.05, runs=runs
    )
    bars = [bar.lines[2][0].get_segments()[0] for bar in ax.containers]
    assert np.asarray(bars)[:, :, 0] == pytest.approx(np.asarray([low, high]).T)
    assert [float(bar.lines[0].get_xdata()[0]) for bar in ax.containers] == pytest.approx(values)
    floors = next(each for each in ax.lines if each.get_label() == "own noise floor")
    assert list(zip(floors.get_xdata(), floors.get_ydata(), strict=True)) == [(0.01, 0), (0.02, 2)]
    assert ax.patches[0].get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx([0.95, 1.05])
    looks = {(bar.lines[0].get_color(), bar.lines[0].get_marker()) for bar in ax.containers}
    assert len(looks) == (3 if runs else 1)


def test_names_stand_from_top_to_bottom():
    _, ax = plots.forest([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], ["first", "second"], quantity="x")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_figures_of_unlike_units_share_no_axis():
    values = [{"a": torch.tensor(1.0), "b": torch.tensor(1000.0)}, {"a": torch.tensor(2.0), "b": torch.tensor(900.0)}]
    _, ax = plots.figures(values)
    assert [panel.get_title(loc="left") for panel in ax.child_axes] == ["a", "b"]
    assert [list(panel.lines[0].get_ydata()) for panel in ax.child_axes] == [[1.0, 2.0], [1000.0, 900.0]]
    _, ax = plots.figures(values[0])
    assert [text.get_text().strip() for text in ax.texts] == ["a", "1", "b", "1000"]
    assert not ax.axison


def test_the_spectrum_falls_and_marks_its_participation_ratio():
    _, ax = plots.covariance_spectrum({"image": torch.tensor([1.0, 4.0, 0.0, 1.0])})
    assert line(ax) == ([1, 2, 3], [4, 1, 1])
    assert line(ax, 1)[0] == pytest.approx([36 / 18])
    assert ax.get_yscale() == "log"


def test_the_heat_map_shows_correlations_of_the_largest_variances(image):
    covariance = torch.cov(image.T.double())
    _, ax = plots.tilt_heat_map(covariance, size=4)
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    order = np.argsort(-np.diag(covariance.numpy()))[:4]
    correlation = np.abs(np.corrcoef(image.double().numpy().T))[np.ix_(order, order)]
    assert np.isnan(np.diag(shown)).all()
    off = ~np.eye(4, dtype=bool)
    assert shown[off] == pytest.approx(correlation[off])


def test_typicality_and_alignment_have_a_point_for_each_sample(image):
    runs = {name: (image[:n, 0], image[:n, 1]) for name, n in (("one", 20), ("two", 30))}
    _, ax = plots.typicality_alignment(runs)
    assert [len(one.get_offsets()) for one in ax.collections] == [20, 30]
    torch.testing.assert_close(torch.tensor(ax.collections[0].get_offsets().data), image[:20, :2].double())
    assert [one.get_text() for one in ax.get_legend().get_texts()] == ["one", "two"]
    _, ax = plots.typicality_alignment({"one": runs["two"]}, points=7, modality="image")
    assert len(ax.collections[0].get_offsets()) == 7


def test_the_separability_scatter_shows_the_two_dimensions(image, text):
    _, ax = plots.separability_scatter(image, text, [4, 1])
    drawn = points(ax)
    assert drawn["image"] == pytest.approx(image[:, [4, 1]].numpy())
    assert drawn["text"] == pytest.approx(text[:, [4, 1]].numpy())
    assert "dimension 4" in ax.get_xlabel()
    assert "dimension 1" in ax.get_ylabel()


def test_a_scatter_does_not_grow_with_the_rows(generator):
    many = ellipsoid_rows(3000, DIM, generator)
    _, ax = plots.separability_scatter(many, many, [0, 1])
    assert [len(rows) for rows in points(ax).values()] == [plots.POINTS] * 2


def test_the_projection_keeps_the_gap_and_the_origin(image, text):
    rows, means = plots.project(image, text)
    gap = float((image.double().mean(0) - text.double().mean(0)).norm())
    assert float(means.text[0, 0] - means.image[0, 0]) == pytest.approx(gap)
    assert float(means.text[0, 1]) == pytest.approx(float(means.image[0, 1]))  # the second axis is at a right angle
    assert rows.image.mean(0).tolist() == pytest.approx(means.image[0].tolist())
    _, doubled = plots.project(2 * image, 2 * text)
    assert doubled.image.abs().tolist()[0] == pytest.approx((2 * means.image).abs().tolist()[0])


def test_the_second_axis_is_the_leading_direction(generator):
    spread = torch.tensor([0.1, 0.1, 3.0, 0.1])
    image, text = (torch.randn(400, 4, generator=generator) * spread + torch.tensor([s, 0, 0, 0]) for s in (5.0, -5.0))
    rows, _ = plots.project(image, text)
    assert float(rows.image[:, 1].std()) == pytest.approx(3.0, rel=0.1)


def test_the_shells_show_the_means_and_the_origin(image, text):
    _, ax = plots.shells(image, text)
    rows, means = plots.project(image, text)
    assert points(ax)["image"] == pytest.approx(rows.image.numpy())
    marks = [line(ax, n) for n in (1, 3, 4)]
    assert np.asarray(marks)[:, :, 0] == pytest.approx(torch.cat([*means, torch.zeros(1, 2)]).numpy())


def test_the_sweep_shows_loss_and_divergence_in_the_order_of_alpha():
    vector = torch.tensor([1.0, 0.0, -1.0])
    sweep = ShiftSweep(vector, *(vector + n for n in range(12)), vector > 5, 77)
    figure = plots.shift_panels(sweep)
    left, right = figure.axes
    assert line(left) == ([-1, 0, 1], sweep.loss.flip(0).tolist())
    assert line(right) == ([-1, 0, 1], sweep.kl.flip(0).tolist())
    assert "77 pairs" in left.get_ylabel()
    assert "nats" in right.get_ylabel()
    band = left.collections[0].get_paths()[0].vertices
    assert {float(v) for v in band[:, 1]} >= {float(v) for v in (*sweep.loss_low, *sweep.loss_high)}


def test_every_metric_draws_on_given_axes_and_on_its_own(image, text):
    import matplotlib.pyplot as plt

    reference = cc.ReferenceSet.fit(image[:150] + 0.3, modality="image")
    metrics = [
        fed(cc.Conformity(reference), image),
        fed(cc.ConformityKL(reference), image),
        fed(cc.EmbeddingNorm(embed_dim=DIM), image),
        fed(cc.EllipsoidGeometry(embed_dim=DIM), image),
        fed(cc.ModalityGap(embed_dim=DIM), image[:200], text),
        fed(cc.GaussianLikelihood(reference), image),
        fed(cc.FrechetDistance(reference), image),
        fed(cc.CMMD(reference), image),
        fed(cc.VendiScore(embed_dim=DIM), image),
        fed(cc.SelfConformity(embed_dim=DIM), image),
        fed(cc.PRDC(reference), image),
        fed(cc.CLIPScore(embed_dim=DIM), image[:200], text),
    ]
    for metric in metrics:
        figure, ax = plt.subplots()
        assert metric.plot(ax=ax) == (figure, ax)
        assert ax.get_xlabel()
        assert ax.get_ylabel() or ax.get_yticklabels()
        figure, ax = metric.plot()
        assert ax.figure is figure
        assert all(label.get_text() not in ("", "None") for label in ax.get_yticklabels())
        _, ax = metric.plot([metric.compute(), metric.compute()])
        assert len((ax.child_axes or [ax])[0].lines[0].get_ydata()) == 2
        plt.close("all")


def rows_of(ax) -> dict[str, tuple[float, float, float]]:
    """Value and ends of each line of a forest plot, by its name."""
    names = [label.get_text() for label in ax.get_yticklabels()]
    bars = [(bar.lines[0].get_xdata()[0], *bar.lines[2][0].get_segments()[0][:, 0]) for bar in ax.containers]
    return {name: tuple(map(float, bar)) for name, bar in zip(names, bars, strict=True)}


@pytest.mark.parametrize("kind", [cc.FrechetDistance, cc.CMMD, cc.PRDC, cc.SelfConformity, cc.VendiScore, cc.CLIPScore])
def test_a_metric_without_a_picture_of_its_own_shows_its_figures_of_one_unit(kind, image, text):
    metric = fed(kind(embed_dim=DIM), image[:200], text) if kind is cc.CLIPScore else (
        fed(kind(embed_dim=DIM), image) if issubclass(kind, SetMetric)
        else fed(kind(cc.ReferenceSet.fit(text)), image)
    )  # fmt: skip
    found, ax = metric.compute(), None
    _, ax = metric.plot()
    drawn = rows_of(ax)
    expected = found if isinstance(found, dict) else {next(iter(drawn)): found}
    for name, value in expected.items():
        if name in drawn:
            assert drawn[name][0] == pytest.approx(float(value), rel=1e-5)
    assert any(low < value < high for value, low, high in drawn.values())
    assert all(low <= value <= high for value, low, high in drawn.values())


def test_the_kl_has_its_interval_and_its_floor(image):
    metric = fed(cc.ConformityKL(cc.ReferenceSet.fit(image[:150])), image[150:] + 0.3)
    _, ax = metric.plot()
    drawn = rows_of(ax)
    assert drawn["conformity kl"][0] == pytest.approx(float(metric.compute()))
    assert drawn["reverse kl"][0] == pytest.approx(float(metric.reverse()))
    low, high = metric.interval(resamples=500)
    assert drawn["conformity kl"][1:] == pytest.approx((float(low), float(high)), rel=1e-5)
    (floor,) = [each for each in ax.lines if each.get_label() == "own noise floor"]
    assert list(floor.get_xdata()) == pytest.approx([float(metric.noise_floor(resamples=500))])


def test_the_norms_are_shown_as_they_are_and_centred(image):
    _, ax = fed(cc.EmbeddingNorm(embed_dim=DIM), image).plot()
    drawn = densities(ax)
    for values, (density, edges) in zip((image, image - image.mean(0)), drawn.values(), strict=True):
        cell = np.abs(density - expected(values.norm(dim=1), edges)).sum() * np.diff(edges)[0]
        assert cell <= 4 / len(image)
    assert len(drawn) == 2


def test_the_geometry_shows_the_spectrum(image):
    _, ax = fed(cc.EllipsoidGeometry(embed_dim=DIM), image).plot()
    assert line(ax)[1] == pytest.approx(sorted(np.linalg.eigvalsh(np.cov(image.numpy().T)), reverse=True), rel=1e-4)


def test_the_likelihoods_lie_over_the_held_out_ones(image, text):
    metric = fed(cc.GaussianLikelihood(cc.ReferenceSet.fit(text)), image)
    _, ax = metric.plot()
    drawn = densities(ax)
    assert list(drawn) == ["reference, held out", "evaluated"]
    density, edges = drawn["evaluated"]
    middle = (density * np.diff(edges) * (edges[1:] + edges[:-1]) / 2).sum()
    assert middle == pytest.approx(float(metric.compute()["log_likelihood_mean"]), abs=float(np.diff(edges)[0]))


def test_the_mmd_is_shown_with_its_halves(image):
    metric = fed(cc.CosineMMD(cc.ReferenceSet.fit(image[:150])), image[150:] + 0.3)
    _, ax = metric.plot()
    drawn = rows_of(ax)
    assert list(drawn) == ["cosine MMD", "by typicality", "by variety"]
    values = [value for value, _, _ in drawn.values()]
    assert values == pytest.approx([float(x) for x in (metric.compute(), *metric.halves())], rel=1e-5)
    _, ax = metric.plot([metric.compute(), metric.compute()])
    assert line(ax)[1] == pytest.approx([float(metric.compute())] * 2)


def test_the_gap_shows_as_many_pairs_as_were_given(image, text):
    _, ax = fed(cc.ModalityGap(embed_dim=DIM), image[:200], text).plot()
    assert {name: len(rows) for name, rows in points(ax).items()} == {"image": 200, "text": 200}


def test_drawing_in_a_colour_ends_with_its_context():
    before = mpl.rcParams["text.color"]
    with plots.use_text_color("#010203"):
        assert mpl.rcParams["text.color"] == "#010203"
    assert mpl.rcParams["text.color"] == before


def test_ridges_of_twelve_models_are_told_apart_and_look_as_on_the_map(generator):
    runs = {f"model {n}": torch.randn(200, generator=generator) * (0.5 + 0.1 * n) + n for n in range(12)}
    reference = torch.randn(300, generator=generator)
    _, ax = plots.ridgelines(runs, reference)
    marks = [one for one in ax.lines if one.get_marker() not in ("None", None, "")]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == list(runs)
    looks = {name: (one.get_color(), one.get_marker()) for name, one in zip(names, marks, strict=True)}
    assert len(set(looks.values())) == 12
    for number, (one, values) in enumerate(zip(marks, runs.values(), strict=True)):
        assert one.get_xdata()[0] == pytest.approx(float(values.double().median()), abs=0.05)
        assert one.get_ydata()[0] == 11 - number  # the first at the top
    place = plots.Place((0.0, -0.1, 0.1), (1.0, 0.9, 1.1))
    _, other = plots.typicality_and_variety(dict.fromkeys(runs, place))
    on_map = [(one.lines[0].get_color(), one.lines[0].get_marker()) for one in other.containers]
    assert on_map == list(looks.values())


def test_a_ridge_is_a_density_over_the_references(generator):
    values, reference = torch.randn(4000, generator=generator), torch.randn(4000, generator=generator) * 2
    _, ax = plots.ridgelines({"a": values}, reference)
    line = next(one for one in ax.lines if len(one.get_xdata()) > 10)
    x, y = (torch.tensor(part) for part in line.get_data())
    height = 1 / torch.trapezoid(y, x)  # so that the ridge is a density
    truth = torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5
    assert float((height * y - truth).abs().max()) < 0.05
    assert float(y.max()) == pytest.approx(1.15)  # the narrower of the two is the highest


def test_equal_values_still_make_a_ridge():
    _, ax = plots.ridgelines({"a": torch.full((5,), 0.5), "b": torch.full((5,), 0.5)}, torch.full((9,), 0.5))
    assert len(ax.get_yticklabels()) == 2


# --- print and people ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "width"), [(1, 3.3), (2, 6.8)])
def test_a_figure_for_a_paper_has_the_width_of_its_columns(columns, width, tmp_path):
    values = {str(n): torch.linspace(0, 1, 50) + n for n in range(12)}
    wide, _ = plots.ridgelines(values, values["0"])
    with plots.for_paper(columns):
        figure, ax = plots.ridgelines(values, values["0"])
        plots.save(figure, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes()[:5] == b"%PDF-"
    assert figure.get_size_inches()[0] == pytest.approx(width)
    shape = [float(one.get_size_inches()[1] / one.get_size_inches()[0]) for one in (wide, figure)]
    assert shape[0] == pytest.approx(shape[1])
    assert ax.xaxis.label.get_size() == 8
    after, _ = plots.series([1.0, 2.0])
    assert after.get_size_inches()[0] == pytest.approx(6.4)


def test_no_other_number_of_columns_is_taken():
    with pytest.raises(ValueError, match="columns: expected 1 or 2, got 3"), plots.for_paper(3):
        pass


def test_the_map_shows_where_one_more_person_would_lie():
    places = {"a": plots.Place((0.5, 0.4, 0.6), (0.9, 0.8, 1.0))}
    _, ax = plots.typicality_and_variety(places, people=((-0.1, 0.2), (0.95, 1.05)))
    (box,) = [patch for patch in ax.patches if patch.get_label() == "one more person"]
    assert box.get_xy().min(0) == pytest.approx([-0.1, 0.95])
    assert box.get_xy().max(0) == pytest.approx([0.2, 1.05])

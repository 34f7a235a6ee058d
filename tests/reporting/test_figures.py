"""Figures draw the numbers of the runs, and nothing else."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from claim_worlds import made
from PIL import Image
from run_helpers import refused

from llds_core.errors import ConfigError, DataError
from llds_core.reporting.curves import curves_data, curves_figure
from llds_core.reporting.figures import mark_paper, save_figure, use_style
from llds_core.reporting.store import load_runs

PANELS = ["reward", "loglik_correct", "entropy"]


def made_run(method="grpo", seed=0, **columns):
    story = {"reward": [0.6] * 18, "loglik_correct": -0.5, "entropy": 1.0 + seed}
    return made(method, seed, story | columns)


def seeds(metric, *values):
    """A run per value, which its metric has at every step."""
    return [made_run(seed=seed, **{metric: [value] * 18}) for seed, value in enumerate(values)]


def bold(axes):
    return max(axes.lines, key=lambda line: line.get_linewidth())


def test_the_table_beside_a_figure_equals_the_metrics_of_the_runs(smoke_runs, tmp_path):
    runs = load_runs(smoke_runs, "smoke", ["grpo", "llds-action"], [0])
    data = curves_data(runs, PANELS)
    paths = save_figure(curves_figure(runs, PANELS), data, tmp_path, "curves", runs)
    stored = pd.read_csv(paths[2], float_precision="round_trip")
    assert list(stored.columns) == ["profile", "method", "seed", "step", "metric", "value"]
    for run in runs:
        for panel in PANELS:
            rows = stored[(stored["method"] == run.method) & (stored["metric"] == panel)]
            # Six digits, as in every published table: last bits differ between machines.
            np.testing.assert_allclose(rows["value"], run.metrics[panel], rtol=5e-6)
            np.testing.assert_array_equal(rows["step"], run.metrics["step"])


def test_the_same_runs_give_the_same_bytes_and_pictures_name_their_runs(tmp_path):
    runs = [made_run(), made_run("llds-action")]
    files = [
        save_figure(curves_figure(runs, PANELS), curves_data(runs, PANELS), folder, "curves", runs)
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    source = Image.open(files[0][0]).info["Source"]
    assert source == "; ".join(f"{run.name} {run.fingerprint}" for run in runs)
    assert runs[0].fingerprint.encode() in files[0][1].read_bytes()


@pytest.mark.parametrize(
    ("values", "bands", "mean"),
    [([1, 4], 0, 2), ([1, 4, 16], 1, 4), ([2, np.nan, 8], 0, 4)],  # geometric means
)
def test_three_seeds_get_a_band_around_their_mean_two_do_not(values, bands, mean):
    """A seed without the metric leaves the mean to the others."""
    axes = curves_figure(seeds("entropy", *values), ["entropy"]).axes[0]
    assert len(axes.collections) == bands
    np.testing.assert_allclose(bold(axes).get_ydata(), [mean] * 18)


@pytest.mark.parametrize(
    ("first", "scale", "low"), [(1.0, "log", 0.3575), (0.0, "linear", -2.9683)]
)
def test_a_metric_that_changes_by_factors_has_a_logarithmic_axis_if_it_can(first, scale, low):
    """The band is Student's of logarithms there, of values on a linear axis."""
    axes = curves_figure(seeds("entropy", first, 2.0, 4.0), ["entropy", "reward"]).axes
    assert (axes[0].get_yscale(), axes[1].get_yscale()) == (scale, "linear")
    [band] = [patch for patch in axes[0].collections if patch.get_alpha() == 0.18]
    assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(low, abs=1e-4)


def test_collapse_and_phases_are_marked_only_where_found():
    stable = curves_figure([made_run()], ["reward"])
    assert not stable.axes[0].patches and not stable.legends
    fallen = curves_figure([made_run(reward=[0.6] * 6 + [0.0] * 12)], ["reward"])
    onset = [line for line in fallen.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in onset] == [8]
    names = [text.get_text() for text in fallen.legends[0].get_texts()]
    assert names == ["stagnation", "collapse", "collapse of a run"]
    shades = [patch.get_facecolor()[:3] for patch in fallen.axes[0].patches]
    assert shades[0] > shades[1] and all(len({*shade}) == 1 for shade in shades)  # greys


@pytest.mark.parametrize(
    ("panels", "reward", "error", "words"),
    [
        (["rewards"], [0.6], ConfigError, 'did you mean "reward"'),
        ([], [0.6], DataError, "name a metric"),
        (["reward"], [], DataError, "finished step"),
    ],
)
def test_what_cannot_be_drawn_is_refused(panels, reward, error, words):
    refused(error, words, curves_figure, [made_run(reward=reward)], panels)


def test_a_step_without_a_value_is_a_gap_in_every_line_and_in_the_band():
    reward = [0.6] * 9 + [np.nan] + [0.6] * 8
    runs = [made_run(seed=seed, reward=np.add(reward, seed / 10)) for seed in range(3)]
    axes = curves_figure(runs, ["reward"]).axes[0]
    assert len(axes.lines) == 4 and bold(axes).get_linewidth() == 2
    for line in axes.lines:
        assert line.get_xdata()[np.isnan(line.get_ydata())].tolist() == [10]
        assert line.get_xdata().tolist() == [*range(1, 19)]
    spans = [path.vertices[:, 0] for path in axes.collections[0].get_paths()]
    assert [(x.min(), x.max()) for x in spans] == [(1, 9), (11, 18)]


def test_at_a_glance_counts_collapses_and_ends_bold_lines_with_the_shortest_seed():
    fallen = {"reward": [0.6] * 6 + [0.1] * 9, "entropy": [1.0] * 15}
    runs = [made_run(), made_run(seed=1, **fallen), made_run("llds-action")]
    runs[1].manifest["config"]["training"]["steps"] = 18
    data = curves_data(runs, ["reward", "entropy"], glance=True)
    third = data.query("method == 'grpo' and seed == 1 and metric == 'reward'")["value"]
    assert third.iloc[6] == pytest.approx((0.6 + 0.6 + 0.1) / 3)
    axes = curves_figure(runs, ["reward", "entropy"], glance=True).axes
    assert axes[0].get_title(loc="left") == "Collapsed by step 18:\nGRPO 1 of 2, LLDS 0 of 1"
    assert {text.get_text() for text in axes[1].texts} == {"GRPO\n2 seeds", "LLDS\n1 seed"}
    assert max(bold(axes[0]).get_xdata()) == 15
    dotted = next(line for line in axes[0].lines if line.get_linestyle() == ":")
    assert (dotted.get_xdata()[0], dotted.get_xdata()[-1]) == (15, 18)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([2.0], "GRPO +1.0"),  # of one seed no interval is known
        ([1.0], "GRPO +0.00"),
        ([0.5, 0.6, 0.7], "GRPO −0.40 ± 0.25"),
        ([0.5, 1, 2], "GRPO +0.2 ± 1.9"),
    ],
)
def test_a_title_gives_the_change_with_its_interval_from_three_seeds_on(ends, said):
    runs = [made_run(seed=seed, entropy=[1.0] * 9 + [end] * 9) for seed, end in enumerate(ends)]
    assert curves_figure(runs, ["entropy"]).axes[0].get_title(loc="left") == said


def test_a_title_gives_the_mean_of_steps_3_to_15_where_that_is_asked():
    runs = [made_run(entropy=[9.0] * 2 + [1.0] * 13 + [9.0] * 3)]
    axes = curves_figure(runs, ["entropy"], early_means=True).axes[0]
    assert axes.get_title(loc="left") == "GRPO +1.00"


def test_a_talk_has_larger_pictures_and_the_paper_is_a_faint_line(tmp_path):
    runs = [made_run()]
    figure = curves_figure(runs, ["reward"])
    for style, width in ((None, 1050), ("talk", 1890), ("paper", 1050)):
        with mpl.rc_context():
            if style:
                use_style(style)
            picture = save_figure(figure, pd.DataFrame(), tmp_path, "curves", runs)[0]
        assert Image.open(picture).width == width
    mark_paper(figure.axes[0], "over 50 %")
    assert figure.axes[0].lines[-1].get_ydata()[0] == 0.5
    refused(ConfigError, 'did you mean "talk"', use_style, "talks")

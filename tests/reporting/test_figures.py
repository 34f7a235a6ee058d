"""Figures draw the numbers of the runs, and nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from llds_core.diagnostics.metrics import METRICS
from llds_core.errors import ConfigError, DataError
from llds_core.reporting.figures import (
    METHOD_COLOURS,
    METHOD_LABELS,
    curves_data,
    curves_figure,
    method_label,
    save_figure,
)
from llds_core.reporting.store import StoredRun, load_runs
from llds_core.reporting.summaries import (
    behaviour_summary,
    collapse_summary,
    phases_summary,
    runs_table,
)

PANELS = ["reward", "loglik_correct", "entropy"]


def made_run(method="grpo", seed=0, *, reward=None, loglik=None):
    reward = [0.6] * 18 if reward is None else reward
    metrics = pd.DataFrame(np.nan, index=range(len(reward)), columns=list(METRICS))
    metrics["step"] = range(1, len(reward) + 1)
    metrics["reward"] = reward
    metrics["loglik_correct"] = -0.5 if loglik is None else loglik
    metrics["entropy"] = np.linspace(1, 2, len(reward)) + seed
    manifest = {"profile": "desk", "method": method, "seed": seed, "status": "complete"}
    return StoredRun(Path(f"{method}{seed}"), manifest | {"config_hash": "abc"}, metrics)


COLLAPSING = [0.6] * 6 + [0.0] * 12


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
    for first, second in zip(*files, strict=True):
        assert first.read_bytes() == second.read_bytes()
    source = Image.open(files[0][0]).info["Source"]
    assert source == "; ".join(f"{run.name} {run.fingerprint}" for run in runs)
    assert runs[0].fingerprint.encode() in files[0][1].read_bytes()


def test_one_panel_a_metric_with_the_colour_of_the_method():
    figure = curves_figure([made_run("llds-action")], PANELS)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_ylabel().replace("\n", " ") for axes in shown] == [
        "reward",
        "log-likelihood of correct responses (nats per token)",
        "entropy (nats per token)",
    ]
    colours = {to_rgba(line.get_color()) for axes in shown for line in axes.lines}
    assert colours == {to_rgba(METHOD_COLOURS["llds-action"])}


def test_colours_tell_methods_apart_and_every_one_has_a_label():
    assert len(set(METHOD_COLOURS.values())) == len(METHOD_COLOURS)
    assert METHOD_COLOURS.keys() == METHOD_LABELS.keys()


def test_arms_are_named_by_what_they_change():
    assert method_label("llds-weight-0.1") == "LLDS, weight 0.1"
    assert method_label("grpo-lr-half") == "GRPO, half the learning rate"
    assert method_label("mine") == "mine"


def test_panels_to_be_compared_get_one_axis():
    panels = ["loglik_correct", "loglik_incorrect", "reward"]
    run = made_run()
    run.metrics["loglik_incorrect"] = -4.0
    axes = curves_figure([run], panels, same_scale=panels[:2]).axes
    assert axes[0].get_ylim() == axes[1].get_ylim() != axes[2].get_ylim()
    low, high = axes[0].get_ylim()
    assert low < -4 and high == 0
    assert curves_figure([run], panels).axes[0].get_ylim()[0] > -1


def test_a_method_without_a_colour_is_drawn_all_the_same():
    assert curves_figure([made_run("mine")], ["reward"]).axes


def test_three_seeds_get_a_band_around_their_mean_two_do_not():
    for seeds, bands in ((2, 0), (3, 1)):
        figure = curves_figure([made_run(seed=seed) for seed in range(seeds)], ["entropy"])
        axes = figure.axes[0]
        assert len(axes.collections) == bands
        bold = max(axes.lines, key=lambda line: line.get_linewidth())
        values = [np.linspace(1, 2, 18) + seed for seed in range(seeds)]
        np.testing.assert_allclose(bold.get_ydata(), np.exp(np.log(values).mean(0)))


def test_a_seed_without_a_metric_leaves_the_mean_to_the_others():
    runs = [made_run(seed=seed) for seed in range(3)]
    runs[1].metrics["entropy"] = np.nan
    axes = curves_figure(runs, ["entropy"]).axes[0]
    bold = max(axes.lines, key=lambda line: line.get_linewidth())
    both = np.linspace(1, 2, 18) * (np.linspace(1, 2, 18) + 2)
    np.testing.assert_allclose(bold.get_ydata(), np.sqrt(both))


def test_lines_set_the_axis_not_an_interval_far_wider():
    runs = [made_run(seed=seed) for seed in range(3)]
    for run, reward in zip(runs, (0.2, 0.4, 0.9), strict=True):
        run.metrics["reward"] = reward
    axes = curves_figure(runs, ["reward"]).axes[0]
    [band] = axes.collections
    low, high = axes.get_ylim()
    assert band.get_paths()[0].vertices[:, 1].min() < -0.3
    assert 0 < low < 0.2 and 0.9 < high < 1.1


def test_a_metric_that_changes_by_factors_has_a_logarithmic_axis_if_it_can():
    """The band is Student's of logarithms there, of values on a linear axis."""
    runs = [made_run(seed=seed) for seed in range(3)]
    for first, scale, low in ((1.0, "log", 0.3575), (0.0, "linear", -2.9683)):
        for run, start in zip(runs, (first, 2.0, 4.0), strict=True):
            run.metrics["entropy"] = start
        axes = curves_figure(runs, ["entropy", "reward"]).axes
        assert (axes[0].get_yscale(), axes[1].get_yscale()) == (scale, "linear")
        [band] = [patch for patch in axes[0].collections if patch.get_alpha() == 0.18]
        assert band.get_paths()[0].vertices[:, 1].min() == pytest.approx(low, abs=1e-4)


def test_collapse_and_phases_are_marked_only_where_found():
    stable = curves_figure([made_run()], ["reward"])
    assert not stable.axes[0].patches and len(stable.legends) == 1
    fallen = curves_figure([made_run(reward=COLLAPSING)], ["reward"])
    onset = [line for line in fallen.axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in onset] == [8]
    names = [text.get_text() for text in fallen.legends[1].get_texts()]
    assert names == ["stagnation", "collapse"] and len(fallen.axes[0].patches) == 2


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ConfigError, match='did you mean "reward"'):
        curves_figure([made_run()], ["rewards"])
    with pytest.raises(ConfigError, match="at least one metric"):
        curves_figure([made_run()], [])
    with pytest.raises(DataError, match="finished step"):
        curves_figure([made_run(reward=[])], ["reward"])


def test_summaries_say_what_the_runs_did():
    runs = [made_run(reward=COLLAPSING), made_run(seed=1), made_run("llds-action")]
    text = collapse_summary(runs)
    assert "**GRPO** collapses in 1 of 2 runs (seed 0 from step 8)" in text
    assert "(action gate)** collapses in 0 of 1 runs" in text
    assert "reward 0.6 → 0.3;" in text
    assert "gradient norm never measured" in text
    assert "entropy 1.56 → 2.44 nats per token" in behaviour_summary(runs, ["entropy"])
    assert "stagnation 1–7, collapse 8–18" in phases_summary(runs[0])
    calm = "no decline of likelihood and no collapse of reward in steps 1–18"
    assert calm in phases_summary(runs[1])
    assert runs_table(runs)["collapse"].tolist() == ["8", "–", "–"]


def test_summaries_of_short_runs_claim_nothing():
    runs = [made_run(reward=[0.5, 0.0])]
    for text in (collapse_summary(runs), behaviour_summary(runs, ["entropy"])):
        assert "2 steps, too few" in text
    assert "too few" in phases_summary(runs[0])
    assert np.isnan(runs_table([made_run(reward=[])])["last reward"]).all()

"""The page on robustness, of results that are made up."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import robustness
from jaxopt_ext.distributed import robust

RESULTS = {
    ("mean", 0): {"none": 0.9},
    ("mean", 3): {attack: 0.5 + 0.01 * i for i, attack in enumerate(robustness.ATTACKS)},
    ("Krum", 3): {attack: 0.9 - 0.01 * i for i, attack in enumerate(robustness.ATTACKS)},
}


def test_all_aggregators_are_tried():
    tried = {type(build(16, 1)).__name__ for build in robustness.RULES.values()}
    assert tried | {"AbstractAggregator", "MinimumVariance"} == set(robust.__all__)


@pytest.mark.parametrize("f", [1, 7])
def test_names_of_what_is_sent(f):
    sent = robustness.messages("trimmed mean", f, 8)
    assert robustness.NOT_SENT + len(sent) == len(robustness.ATTACKS)
    assert all(attack.f == f for attack in sent)
    assert len(robustness.messages("NNA", f, 0)) == len(sent) - 2


def test_how_many_bad_workers_a_rule_takes():
    largest = lambda name: max(f for f in range(9) if robustness.feasible(name, f))
    assert {name: largest(name) for name in ("mean", "median", "Krum", "bucketing, trimmed")} == {
        "mean": 7,
        "median": 7,
        "Krum": 6,
        "bucketing, trimmed": 3,
    }


def test_the_page_and_the_picture():
    page = robustness.page(RESULTS, "Settings.")
    assert "| mean | 90.0 |" in page
    assert "| mean | **50.0** | 51.0 |" in page
    assert "| Krum | 90.0 | 89.0 |" in page
    assert "**80.0** |" in page
    assert "| median" not in page
    shown = robustness.matrix(RESULTS, 3)
    assert shown.shape == (len(robustness.RULES), len(robustness.ATTACKS))
    assert np.isfinite(shown).sum() == 2 * len(robustness.ATTACKS)
    figure = robustness.picture(RESULTS, (3,))
    assert "3 of 16 workers bad" in figure.axes[0].get_title()
    plt.close(figure)

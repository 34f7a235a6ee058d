"""The interval of a mean over seeds: hand-computed constants, and few or missing values."""

import numpy as np

from llds_core.reporting.stats import student_interval


def test_students_interval_equals_the_textbook_and_needs_two_values():
    # Mean 2, deviation 1, t(2) at 97.5 % is 4.3027: half width 4.3027 / sqrt(3) = 2.4842.
    interval = student_interval([1, 2, 3])
    np.testing.assert_allclose([interval.low, interval.high], [2 - 2.4842, 2 + 2.4842], atol=1e-4)
    one = student_interval([0.5, np.nan])
    assert (one.estimate, one.n) == (0.5, 1) and np.isnan([one.low, one.high]).all()
    assert np.isnan(student_interval([]).estimate) and student_interval([]).n == 0

"""How often rows are drawn: by class, and by picture where files are variants of one."""

from __future__ import annotations

import numpy as np

from tandem.training.balance import balanced


def test_a_class_weighs_its_distinct_pictures_to_a_power_and_variants_share():
    labels = np.array([0, 0, 0, 0, 2, 2], np.int32)
    groups = np.array([7, 7, -1, 5, 7, 7], np.int64)  # three pictures of class 0, one of class 2
    np.testing.assert_allclose(balanced(labels, groups, 1), [1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 8, 1 / 8])
    np.testing.assert_allclose(balanced(labels, groups, 0), [1 / 12, 1 / 12, 1 / 6, 1 / 6, 1 / 4, 1 / 4])
    root = balanced(labels, groups, 0.5)
    np.testing.assert_allclose([root.sum(), root[:4].sum() / root[4:].sum()], [1, 3**0.5])

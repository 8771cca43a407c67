"""The gallery of repairs: the repaired samples of a run, and their texts as text."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_report import optimization, write_result

from benchmarks.gallery import make
from ttopt.errors import UserError
from ttopt.record.result import Scored


def test_the_gallery_shows_what_was_repaired(tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "docs/gallery.md"
    asked = {"goal": "Is <it> *there*?"}
    for name, right_before in (("b", True), ("c", False)):
        before = Scored(right_before, 0.5, {"goal": right_before}, {} if right_before else asked)
        place = run / "samples" / name
        write_result(
            place, name, "move", True, 5, optimization=dataclasses.replace(optimization(), score_before=before)
        )
        shutil.copy(place / "video.mp4", place / "base.mp4")
    assert make(run, page, "made so", 12) == 1
    text = page.read_text()
    assert "1 right and the optimized one 2: 1 repaired, 0 broken" in " ".join(text.split()) and "made so" in text
    assert "<script" not in text and "“Is &lt;it&gt; \\*there\\*?” No" in text
    assert [path.name for path in (tmp_path / "docs/gallery").iterdir()] == ["c.webp"]
    assert Image.open(tmp_path / "docs/gallery/c.webp").n_frames > 1
    shutil.rmtree(run / "samples/c")
    with pytest.raises(UserError, match="no repaired sample"):
        make(run, page, "made so", 12)

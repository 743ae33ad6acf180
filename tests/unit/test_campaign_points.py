"""The campaign's points of death are there: whoever renames what they hang on hears of it here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("point", ["acquire", "run", "artifact", "outcome", "acknowledge"])
def test_a_worker_can_be_told_to_die_at_each_point(point: str, tmp_path: Path) -> None:
    env = os.environ | {"CAMPAIGN_POINT": point, "CAMPAIGN_ONCE": str(tmp_path / "once")}
    line = [sys.executable, "-c", "import sys; sys.path.insert(0, 'tests/campaign/site'); import tape_campaign"]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""What several tests need: third-party data, which is never in this repository."""
import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "assets"
if BESIDE.is_dir():
    os.environ.setdefault("FLOWMAG_NB_MIRROR", str(BESIDE))


@pytest.fixture(scope="session")
def mirror():
    """Folder laid out like `data/sources.csv`; without one, tests that need it are skipped."""
    folder = os.environ.get("FLOWMAG_NB_MIRROR")
    if not folder:
        pytest.skip("needs a mirror folder with third-party data (FLOWMAG_NB_MIRROR)")
    return Path(folder)

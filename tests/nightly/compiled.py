"""What sm90.py told of the cases that it compiled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from device import build

SHARED = 227 << 10  # bytes of shared memory that a block of an H100 may ask for


def told_of(cases: Iterable[str], caches: Path) -> dict[str, Any]:
    """Compile all cases in one process, as in a run, where what one has compiled serves another. Skips the test that
    asks where something is missing."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (pip install triton; .ci/nightly does)")
    if why := build.missing():
        pytest.skip(why)
    names = {"TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"), "TRITON_CACHE_DIR": str(caches / "triton")}
    command = [sys.executable, str(Path(__file__).with_name("sm90.py")), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | names)
    assert done.returncode == 0, done.stderr
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}

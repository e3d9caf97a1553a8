"""A run that is killed at any moment and goes on leaves what one leaves that never was killed: every line, weight,
optimizer tensor and random state. One whose rollouts don't wait for training depends on the clock; it learns from each
prompt once, with the tokens that checkpoints held.

`--kills N` says how many times runs are killed at least (20 by default; `--kills 200` by hand), `--kills-seed` when.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from kills.harness import PATIENCE, differences, killed_and_finished, said, start, wait_for_a_moment
from kills.once import trial
from kills.settings import AHEAD, SETTINGS, Setting, config_of, files


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    files(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_kills(setting: Setting, shared: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if setting.by_hand and request.config.getoption("kills") < 100:
        pytest.skip("with --kills 100 or more")
    whole, log, began = tmp_path / "whole", tmp_path / "whole.log", time.monotonic()
    process = start(config_of(setting, shared, whole), setting.ranks, None, log)
    process.join(PATIENCE)
    seconds = time.monotonic() - began
    assert process.exitcode == 0, said(log)
    steps = max(int(path.name.removeprefix("step-")) for path in whole.glob("checkpoints/step-*"))

    number, kills, wrong, seed = 0, [], [], request.config.getoption("kills_seed")
    while len(kills) < -(-request.config.getoption("kills") // len(SETTINGS)):
        folder = tmp_path / f"killed-{number}"
        made = killed_and_finished(setting, shared, folder, seed + number, partial(wait_for_a_moment, seconds=seconds))
        kills += made
        wrong += [f"{made}: {found}" for found in differences(whole, folder, steps)]
        shutil.rmtree(folder)
        number += 1
    print(f"{setting.name}: {len(kills)} kills in {number} runs of {seconds:.1f} s, {len(wrong)} differences")
    for kill in kills:
        print(f"    {kill}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("setting", AHEAD, ids=lambda setting: setting.name)
def test_kills_while_rollouts_are_ahead(
    setting: Setting, shared: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    number, kills, wrong, under_way = 0, [], [], 0
    while len(kills) < max(1, request.config.getoption("kills") // 20):
        folder = tmp_path / f"killed-{number}"
        made, checkpoints, found = trial(setting, shared, folder, request.config.getoption("kills_seed") + number)
        kills += made
        wrong += [f"{made}: {problem}" for problem in found]
        under_way += sum(each.under_way for each in checkpoints)
        shutil.rmtree(folder)
        number += 1
    print(f"{setting.name}: {len(kills)} kills in {number} runs, {len(wrong)} problems")
    print(f"    checkpoints that runs went on from held {under_way} completions under way")
    for kill in kills:
        print(f"    {kill}")
    assert not wrong, "\n".join(wrong)

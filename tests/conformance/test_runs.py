"""Checks about whole runs: each catches a method that is wrong in this way, and right ones pass."""

from __future__ import annotations

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.testing.conformance.checks import runs

TERMS = 'terms={"rows": -(weights * out["logp"]).sum()}'
HEAD = "@hookimpl\ndef ft_loss("
WEIGHTS = 'weights = row_weights(batch.columns["sizes"], run.config.length_power)[batch.rows]'
STEP = """\
@hookimpl
def ft_step(rows, run):
    run.state["longest"] = max((row["length"] for row in rows), default=1)


"""
SPREAD = """\
@hookimpl
def ft_step(rows, run):
    run.state["spread"] = float(next(run.policy.parameters()).detach().numpy().std())


"""
WRONG = [
    Wrong(
        name="a mean over the micro-batch",
        old=TERMS,
        new='loss=-(weights * out["logp"]).sum() / max(1, batch.counts["rows"])',
        fails="runs-split",
        also=("runs-seed", "runs-resume", "runs-evaluation", "runs-lora"),  # the host refuses the run
    ),
    Wrong(
        name="a seed of its own",
        file="config.py",
        old="        le=1,\n    )\n",
        new="        le=1,\n    )\n\n    def check(self) -> None:\n        super().check()\n        self.seed = 7\n",
        fails="runs-seed",
        also=("runs-resume",),
    ),
    Wrong(
        name="a count that no checkpoint holds",
        old=WEIGHTS,
        new="weights = 1.1 ** (run.step - BEGAN.setdefault(run.folder.path, run.step)) * row_weights("
        'batch.columns["sizes"], run.config.length_power)[batch.rows]',
        more=((HEAD, f"BEGAN = {{}}\n\n\n{HEAD}"),),
        fails="runs-resume",
    ),
    Wrong(
        name="an evaluation that leaves a trace",
        old=WEIGHTS,
        new="weights = run.state.get('seen', 1) ** model.training * row_weights("
        'batch.columns["sizes"], run.config.length_power)[batch.rows]',
        more=(
            (
                "    return LossOutput(",
                "    run.state['seen'] = run.state.get('seen', 1) + (not model.training)\n    return LossOutput(",
            ),
        ),
        fails="runs-evaluation",
    ),
    Wrong(
        name="a penalty on all weights that are trained",
        old='-(weights * out["logp"]).sum()}',
        new='-(weights * out["logp"]).sum() + batch.counts["rows"] * 1e-3 * sum('
        "each.pow(2).sum() for each in model.parameters() if each.requires_grad)}",
        fails="runs-lora",
    ),
    Wrong(
        name="a statistic of one rank's rows",
        old='-(weights * out["logp"]).sum()}',
        new='-(weights * out["logp"]).sum() * run.state.get("longest", 1)}',
        more=((HEAD, STEP + HEAD),),
        fails="runs-processes",
    ),
    Wrong(
        name="weights that are read between steps",
        old='-(weights * out["logp"]).sum()}',
        new='-(weights * out["logp"]).sum() * (1 + run.state.get("spread", 0))}',
        more=((HEAD, SPREAD + HEAD),),
        fails="runs-fsdp2",
    ),
    Wrong(
        name="what a module keeps while its process lasts",
        old=WEIGHTS,
        new='weights = 1.1 ** (run.step - BEGAN.setdefault("at", run.step)) * row_weights('
        'batch.columns["sizes"], run.config.length_power)[batch.rows]',
        more=((HEAD, f"BEGAN = {{}}\n\n\n{HEAD}"),),
        fails="runs-killed",
    ),
]
BY_ID = {check.id: check for check in runs.CHECKS}
QUICK = [check for check in runs.CHECKS if check.tier == "experimental"]
IN_PROCESS = [wrong for wrong in WRONG if BY_ID[wrong.fails] in QUICK]
APART = [wrong for wrong in WRONG if wrong not in IN_PROCESS]


@pytest.mark.parametrize("wrong", IN_PROCESS, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    assert_caught([BY_ID[wrong.fails]], wrong, tmp_path)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("wrong", IN_PROCESS, ids=lambda wrong: wrong.name)
def test_no_other_check_is_told_of_it(wrong, tmp_path):
    assert_caught(QUICK, wrong, tmp_path)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("wrong", APART, ids=lambda wrong: wrong.name)
def test_it_is_caught_by_processes(wrong, tmp_path):
    assert_caught([BY_ID[wrong.fails]], wrong, tmp_path)


@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes(kind, tmp_path):
    assert failures(QUICK, None, kind, tmp_path) == []


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["offline", "pairs", "rollouts"])
def test_a_right_one_passes_with_processes(kind, tmp_path):
    assert failures([check for check in runs.CHECKS if check not in QUICK], None, kind, tmp_path) == []


def test_every_check_has_a_wrong_method():
    assert set(BY_ID) == {wrong.fails for wrong in WRONG}

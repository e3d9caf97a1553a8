"""Rewards in processes of their own: what each way to fail costs, and what is never to be seen of them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ft_host.errors import ConfigError, DataError, FtHostError
from ft_host.rewards import RewardPool, Scored, Scoring
from ft_host.rewards import pool as module

FILE = """
import asyncio, os, random, signal, subprocess, sys, time

AT_IMPORT = random.random()

def drawn(completions):
    import numpy
    return [random.random() + numpy.random.rand() + AT_IMPORT for c in completions]

def drawn_too(completions):
    return drawn(completions)

def length(completions):
    return [float(len(c)) for c in completions]

def raises(completions):
    number = 1
    return [number / 0]

def raises_inside_a_library(completions):
    import json
    return [json.loads(c) for c in completions]

def raises_for_one(completions, log_metric, log_extra):
    if "yy" in completions:
        raise ValueError(f"not yy\\nbut {len(completions)}")
    log_metric("seen", len(completions))
    log_extra("upper", [c.upper() for c in completions])
    return [1.0] * len(completions)

def hangs(completions):
    while True:
        time.sleep(1)

def hangs_for_one(completions):
    if "yy" in completions:
        while True:
            pass
    return [1.0] * len(completions)

def holds_the_lock(completions):
    import re
    re.match("(a*)*$", "a" * 60 + "b") if "yy" in completions else None
    return [1.0] * len(completions)

def exits_for_one(completions):
    if "yy" in completions:
        os._exit(7)
    return [1.0] * len(completions)

def calls_exit(completions):
    sys.exit("enough")

def crashes_for_one(completions):
    if "yy" in completions:
        os.kill(os.getpid(), signal.SIGSEGV)
    return [1.0] * len(completions)

def too_few(completions):
    return [1.0, 2.0]

def too_few_at_once(completions):
    return [1.0]

def a_number(completions):
    return 1.0

def yields(completions):
    for c in completions:
        yield 1 / (len(c) - 2)

def odd(completions, answer):
    return [float(a) if a in ("nan", "inf") else None if a == "none" else a for a in answer]

def text(completions):
    return ["2.0" if c == "yy" else 2 for c in completions]

def bad_log(completions, log_extra):
    log_extra("one", ["a", "b"])
    return [1.0] * len(completions)

def logs(completions, log_metric, log_extra, **columns):
    log_metric("length", 2)
    log_metric("length", 4)
    log_metric("nothing", float("nan"))
    log_extra("upper", [c.upper() for c in completions])
    log_extra("odd", [object, {1: 2}, (3, float("inf"))])
    return [None, 1, True]

def state(trainer_state, prompts, completion_ids, **columns):
    assert set(columns) == {"answer", "level", "completions", "log_extra", "log_metric"}, columns
    assert prompts == ["a", "b", "c"] and "torch" not in sys.modules and "transformers" not in sys.modules
    return [trainer_state.global_step + len(ids) for ids in completion_ids]

loops = set()
async def waits(completions):
    loops.add(asyncio.get_running_loop())
    await asyncio.sleep(0.01)
    return [float(len(loops))] * len(completions)

async def waits_and_raises(completions):
    await asyncio.sleep(0.01)
    raise KeyError("later")

def slow(completions):
    start = time.time(); time.sleep(0.6)
    return [start, time.time(), os.getpid()]

def slow_too(completions):
    return slow(completions)

def prints(completions):
    print("printed", flush=True)
    os.system("echo by a child")
    return [0.0] * len(completions)

def leaves_a_child(completions):
    child = subprocess.Popen(["sleep", "1000"])
    return [float(child.pid)] * len(completions)

def process(completions):
    return [float(os.getpid()) for _ in completions]

class Above:
    def __init__(self, least):
        self.least = least
    def __call__(self, completions):
        return [float(len(c) > self.least) for c in completions]

above_one = Above(1)
nameless = lambda completions: [0.5] * len(completions)
print("imported")
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE, encoding="utf-8")


@pytest.fixture
def pool():
    """A pool of functions in mine.py, closed in the end. No process may be left of it then."""
    made: list[RewardPool] = []

    def make(*names: str, **fields: Any) -> RewardPool:
        given = {"reward_timeout": 5.0, "reward_workers": 2, "max_reward_failures": 64, "reward_kwargs": {}, "seed": 1}
        specs = [name if ":" in name or name.endswith("reward") else f"mine.py:{name}" for name in names]
        made.append(RewardPool(specs, SimpleNamespace(**(given | fields))))
        return made[-1]

    yield make
    for each in made:
        processes = [psutil.Process(worker.process.pid) for worker in each.workers if worker.process.poll() is None]
        each.close()
        assert not any(process.is_running() for process in processes) and not each.workers


def scoring(**fields: Any) -> Scoring:
    given = {
        "prompts": ["a", "b", "c"],
        "completions": ["x", "yy", "zzz"],
        "completion_ids": [[1], [2, 2], [3, 3, 3]],
        "columns": {"answer": ["x", "n", "zzz"], "level": [1, 2, 3]},
        "trainer_state": SimpleNamespace(global_step=7),
    }
    return Scoring(**(given | fields))


def line(text: str) -> int:
    return FILE.split("\n").index(text) + 1


def first(scored: Scored) -> list[float | None]:
    return [values[0] for values in scored.values]


# ---------------------------------------------------------------- what works


def test_what_a_reward_draws_depends_on_the_seed_and_on_what_it_scores(pool):
    one, two = pool("drawn", "drawn_too", reward_workers=1), pool("drawn", "drawn_too", reward_workers=2)
    first = one.score(scoring()).values
    assert first == two.score(scoring()).values == two.score(scoring()).values  # whichever worker, however often asked
    assert len({value for row in first for value in row}) == 2 * len(first)
    assert pool("drawn", "drawn_too", seed=2).score(scoring()).values != first
    assert one.score(scoring(completions=scoring().completions[::-1])).values != first


def test_functions_of_a_file_and_built_in_ones_together(pool):
    ours = pool("length", "above_one", "nameless", "think_format_reward")
    assert ours.names == ["length", "above_one", "nameless", "think_format_reward"]
    assert ours.functions[0].takes == ("completions",) and ours.functions[0].line == line("def length(completions):")
    assert ours.score(scoring()).values == [[1.0, 0.0, 0.5, 0.0], [2.0, 1.0, 0.5, 0.0], [3.0, 1.0, 0.5, 0.0]]
    assert ours.score(scoring()) == ours.score(scoring())
    assert ours.score(scoring()).failures == {}


def test_built_in_rewards_are_made_to_measure(pool):
    arguments = {"get_repetition_penalty_reward": {"ngram_size": 1, "max_penalty": -3}}
    ours = pool("get_repetition_penalty_reward", reward_kwargs=arguments)
    assert ours.names == ["repetition_penalty_reward"] and not ours.workers
    assert first(ours.score(scoring())) == [0.0, -1.5, pytest.approx(-2.0)]
    with pytest.raises(ConfigError, match="unknown argument 'ngrams'; did you mean 'ngram_size'"):
        pool("get_repetition_penalty_reward", reward_kwargs={"get_repetition_penalty_reward": {"ngrams": 2}})


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")
def test_accuracy_in_a_worker(pool):
    texts = [r"\boxed{12}", "12", r"the answer is $\frac{1}{2}$"]
    scored = pool("accuracy_reward").score(scoring(completions=texts, columns={"solution": ["12", "12", "0.5"]}))
    assert first(scored) == [1.0, 0.0, 1.0]
    assert scored.extra["answer_parsed"] == ["[12, '12']", "[unparseable]", r"[1/2, '\\frac{1}{2}']"]


def test_no_completions_are_no_call(pool):
    empty = scoring(prompts=[], completions=[], completion_ids=[], columns={"answer": []})
    assert pool("raises").score(empty) == Scored(values=[])


def test_the_same_process_is_used_again(pool):
    ours = pool("process")
    assert first(ours.score(scoring())) == first(ours.score(scoring())) == [ours.workers[0].process.pid] * 3
    assert len(ours.workers) == 1


def test_columns_and_the_trainers_state_are_handed_over_without_torch(pool):
    assert first(pool("state").score(scoring())) == [8.0, 9.0, 10.0]


def test_the_state_has_the_fields_of_transformers_own(pool):
    from transformers import TrainerState

    assert first(pool("state").score(scoring(trainer_state=TrainerState(global_step=3)))) == [4.0, 5.0, 6.0]


def test_an_async_function_has_one_loop_for_all_calls(pool):
    ours = pool("waits")
    assert ours.functions[0].is_async
    assert first(ours.score(scoring())) == first(ours.score(scoring())) == [1.0] * 3


def test_what_functions_log(pool):
    scored = pool("logs").score(scoring())
    assert first(scored) == [None, 1.0, 1.0]
    assert scored.metrics == {"length": [2.0, 4.0]}
    assert scored.extra["upper"] == ["X", "YY", "ZZZ"]
    assert scored.extra["odd"] == ["<class 'object'>", {"1": 2}, [3, float("inf")]]


def test_two_functions_run_at_once(pool):
    ours = pool("slow", "slow_too")
    ours.score(scoring())
    (start, also), (end, too), (process, other) = ours.score(scoring()).values
    assert process != other and max(start, also) < min(end, too)


def test_one_worker_is_enough_for_two_functions(pool):
    scored = pool("process", "raises_for_one", "length", reward_workers=1).score(scoring())
    assert [value[1:] for value in scored.values] == [[1.0, 1.0], [None, 2.0], [1.0, 3.0]]


# ---------------------------------------------------------------- what fails

LATE = "took longer than 0.3 s"


@pytest.mark.parametrize(
    ("name", "expected", "reasons"),
    [
        (
            "raises",
            [None] * 3,
            {i: "raised ZeroDivisionError: .*mine.py, line {return [number / 0]}" for i in range(3)},
        ),
        ("raises_for_one", [1, None, 1], {1: "raised ValueError: not yy .*mine.py, line {raise ValueError}"}),
        ("waits_and_raises", [None] * 3, {i: "raised KeyError: 'later' .*mine.py, line {raise Key}" for i in range(3)}),
        ("hangs", [None] * 3, dict.fromkeys(range(3), LATE)),
        ("hangs_for_one", [1, None, 1], {1: LATE}),
        ("holds_the_lock", [1, None, 1], {1: LATE}),
        ("exits_for_one", [1, None, 1], {1: "its process ended with exit code 7"}),
        ("calls_exit", [None] * 3, dict.fromkeys(range(3), "its process ended with exit code 1")),
        ("crashes_for_one", [1, None, 1], {1: "its process was killed by SIGSEGV"}),
        ("too_few", [None] * 3, dict.fromkeys(range(3), "returned 2 rewards for 1 completion$")),
        ("too_few_at_once", [1, 1, 1], {}),
        ("a_number", [None] * 3, dict.fromkeys(range(3), "returned float 1.0, expected a list of 1 reward, one a")),
        ("yields", [-1, None, 1], {1: "raised ZeroDivisionError: .*mine.py, line {yield 1 /}"}),
        ("text", [2, None, 2], {1: "gave str '2.0', expected a finite number"}),
        (
            "raises_inside_a_library",
            [None] * 3,
            dict.fromkeys(range(3), "JSONDecodeError: .*mine.py, line {json.loads}"),
        ),
    ],
)
def test_what_fails_is_called_again_for_each_completion(pool, name, expected, reasons):
    ours = pool(name, "length", reward_timeout=0.3 if LATE in reasons.values() else 5.0)
    scored = ours.score(scoring())
    assert first(scored) == expected
    assert [values[1] for values in scored.values] == [1.0, 2.0, 3.0]
    found = dict(scored.failures.get(name, []))
    assert set(found) == set(reasons)
    for index, pattern in reasons.items():
        code = re.search(r"\{(.*)\}", pattern)
        if code:
            number = next(i for i, text in enumerate(FILE.split("\n"), 1) if code[1] in text)
            pattern = pattern.replace(code[0], str(number))
        assert re.search(pattern, found[index]), found[index]
        assert "ft_host" not in found[index]


def test_a_value_that_is_not_finite_costs_its_completion_without_another_call(pool):
    ours = pool("odd", "process")
    columns = {"answer": ["nan", "none", 3.0]}
    scored = ours.score(scoring(columns=columns))
    assert first(scored) == [None, None, 3.0]
    assert scored.failures == {"odd": [(0, "gave float nan, expected a finite number (or None: does not apply)")]}
    columns = {"answer": [1, "inf", -1.0]}
    assert first(ours.score(scoring(columns=columns))) == [1.0, None, -1.0]
    assert ours.started <= 2


def test_what_is_logged_by_the_calls_for_single_completions_is_put_together(pool):
    scored = pool("raises_for_one").score(scoring())
    assert scored.metrics == {"seen": [1.0, 1.0]}
    assert scored.extra == {"upper": ["X", None, "ZZZ"]}


def test_the_second_calls_are_made_by_a_fresh_process(pool):
    Path("state.py").write_text(
        "calls = []\ndef first_of_all(completions):\n    calls.append(len(completions))\n"
        "    return [float(len(calls))] if len(completions) == 1 else 1 / 0\n"
    )
    scored = pool("state.py:first_of_all", reward_workers=1).score(scoring())
    assert first(scored) == [1.0, 2.0, 3.0]


def test_too_many_in_a_row_end_the_run_and_its_processes(pool):
    ours = pool("raises", max_reward_failures=4)
    ours.score(scoring())
    pids = [worker.process.pid for worker in ours.workers]
    with pytest.raises(FtHostError) as caught:
        ours.score(scoring())
    said = str(caught.value)
    assert (
        f"reward function raises ({Path('mine.py').resolve()}, line {line('def raises(completions):')}) failed" in said
    )
    assert "for 5 completions in a row (max_reward_failures: 4), the last time: raised ZeroDivisionError" in said
    assert f"mine.py, line {line('    return [number / 0]')})" in said
    assert not ours.workers and not any(map(psutil.pid_exists, pids))


def test_a_reward_in_between_ends_a_row_of_failures(pool):
    ours = pool("odd", max_reward_failures=2)
    nan = ["nan"] * 2
    for answer in ([*nan, 1.0], ["none", *nan], [None, *nan]):
        ours.score(scoring(columns={"answer": answer}))
    with pytest.raises(FtHostError, match="for 3 completions in a row .* gave float nan"):
        ours.score(scoring(columns={"answer": ["nan", 1.0, 1.0]}))
    with pytest.raises(FtHostError, match="for 1 completion in a row .*max_reward_failures: 0"):
        pool("odd", max_reward_failures=0).score(scoring(columns={"answer": ["nan", 1, 1]}))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine.py:lenght", r"^reward: mine.py was read, but 'lenght' is not defined; did you mean 'length'\?"),
        ("mien.py:length", r"^reward: there is no file mien.py; did you mean 'mine.py'\?"),
        ("no_such_module:length", r"^reward: module 'no_such_module' can't be imported: ModuleNotFoundError"),
        (
            "think_fromat_reward",
            r"^reward: 'think_fromat_reward' is not of the form .* did you mean 'think_format_reward'",
        ),
        ("exits.py:f", r"^reward: exits.py:f can't be imported: its process ended with exit code 3"),
        ("broken.py:f", r"^reward: broken.py can't be imported: ZeroDivisionError: .*broken.py, line 1\)"),
    ],
)
def test_what_cannot_be_found_is_refused_before_anything_is_scored(pool, spec, said):
    Path("exits.py").write_text("import os\nos._exit(3)\n")
    Path("broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=said):
        pool(spec)


def test_an_import_that_does_not_end(pool, monkeypatch):
    monkeypatch.setattr(module, "LOADING", 0.3)
    Path("endless.py").write_text("import time\ntime.sleep(1000)\n")
    with pytest.raises(ConfigError, match="endless.py:f can't be imported: the import took longer than 0.3 s"):
        pool("endless.py:f")


def at_the_top(completions): ...


def test_a_function_itself_is_refused(pool):
    config = SimpleNamespace(reward_kwargs={})
    with pytest.raises(ConfigError, match=f"by name: give '{__name__}:at_the_top'"):
        RewardPool([at_the_top], config)
    with pytest.raises(ConfigError, match="<lambda>.*give file.py:function or package.module:function"):
        RewardPool([lambda completions: []], config)


def test_two_of_one_name_are_refused(pool):
    Path("other.py").write_text("def length(completions): ...\n")
    with pytest.raises(ConfigError, match="reward: two rewards are called 'length'"):
        pool("length", "other.py:length")


def test_columns(pool):
    with pytest.raises(DataError, match="odd: its parameter 'answer' is neither"):
        pool("odd").score(scoring(columns={"level": [1, 2, 3]}))
    ours = pool("logs")
    with pytest.raises(
        DataError, match="reward function logs .*: column 'level' of the data can't be sent to the proc"
    ):
        ours.score(scoring(columns={"answer": [1, 2, 3], "level": [lambda: 0] * 3}))
    assert not ours.workers


# ---------------------------------------------------------------- processes


def test_a_worker_dies_with_its_children_and_a_dead_one_is_replaced(pool):
    ours = pool("leaves_a_child", "length", reward_workers=1)
    child = psutil.Process(int(first(ours.score(scoring()))[0]))
    assert child.is_running()
    ours.workers[0].process.kill()
    ours.workers[0].process.wait()
    scored = ours.score(scoring())
    assert scored.failures == {} and ours.started == 2
    other = psutil.Process(int(first(scored)[0]))
    ours.close()
    for each in (child, other):
        psutil.wait_procs([each], timeout=2)
        assert not each.is_running() or each.status() == psutil.STATUS_ZOMBIE


def script(text: str, file: str = "script.py") -> subprocess.CompletedProcess[str]:
    """A script without `if __name__ == "__main__"`, run."""
    start = """
        from types import SimpleNamespace
        from ft_host.rewards import RewardPool, Scoring
        given = {"reward_timeout": 60.0, "reward_workers": 2, "max_reward_failures": 64, "reward_kwargs": {}, "seed": 1}
        config = SimpleNamespace(**given)
        scoring = Scoring(prompts=["a"], completions=["yy"], completion_ids=[[1]], columns={}, trainer_state=None)
    """
    Path(file).write_text(textwrap.dedent(start) + textwrap.dedent(text), encoding="utf-8")
    return subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=60, check=False)


def test_prints_never_reach_standard_output_and_the_script_is_not_run_again():
    done = script("""
        import json
        pool = RewardPool(["mine.py:prints", "mine.py:length"], config)
        print(json.dumps(pool.score(scoring).values))
        pool.close()
        """)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[0.0, 2.0]]
    assert "printed" in done.stderr and "by a child" in done.stderr and "imported" in done.stderr


def test_a_script_whose_own_function_is_the_reward_is_told_how():
    done = script("def own(completions): ...\nRewardPool(['script.py:own'], config)\n")
    assert (
        "script.py can't be imported: ConfigError: the file with the rewards starts a training run when it is"
        in done.stderr
    )
    assert "ConfigError: reward: script.py" in done.stderr and not done.stdout


def test_a_worker_ends_with_a_parent_that_was_killed_during_a_call():
    code = """
        import os, threading, time
        pool = RewardPool(["mine.py:leaves_a_child", "mine.py:hangs"], config)
        def say():
            while len(pool.workers) < 2: time.sleep(0.01)
            time.sleep(0.5)
            print(*[worker.process.pid for worker in pool.workers], flush=True)
            os.kill(os.getpid(), 9)
        threading.Thread(target=say).start()
        pool.score(scoring)
    """
    done = script(code)
    assert done.returncode == -9
    deadline = time.monotonic() + 5
    pids = [int(each) for each in done.stdout.split()]
    assert len(pids) == 2
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_runs, pids))


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_this_process_has_imported_none_of_it(pool):
    before = set(sys.modules)
    pool("length").score(scoring())
    assert not [name for name in set(sys.modules) - before if name.startswith("_ft_host_file_mine")]
    assert "FT_HOST_REWARD_WORKER" not in os.environ


# ---------------------------------------------------------------- what docs/rewards.md says


def test_the_functions_of_the_page_do_what_it_says(pool):
    page = (Path(__file__).resolve().parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    [file] = re.findall(r"^```python my_rewards.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    Path("my_rewards.py").write_text(file, encoding="utf-8")
    ours = pool("my_rewards.py:right", "my_rewards.py:short", max_reward_failures=1)
    given = scoring(
        completions=["6 + 6 is 12", "no", "that is 3"],
        completion_ids=[[1] * 128, [1], [1]],
        columns={"answer": ["12", "1", "twelve"], "level": ["easy", "hard", "hard"]},
    )
    scored = ours.score(given)
    assert scored.values == [[1.0, 0.75], [-1.0, None], [None, None]]
    assert scored.extra == {"read": ["12", None, None]}
    # The two sentences of the page, but for the folder and the numbers.
    [(index, reason)] = scored.failures["right"]
    assert index == 2 and reason.replace(str(Path.cwd()), "/home/me") in page
    with pytest.raises(FtHostError) as caught:
        ours.score(scoring(completions=["1", "2", "3"], columns={"answer": ["twelve"] * 3}))
    said = str(caught.value).replace(str(Path.cwd()), "/home/me")
    assert said.partition(" failed for ")[0] in page
    assert said.partition(" failed for ")[2].startswith(
        "2 completions in a row (max_reward_failures: 1), the last time: "
    )
    assert " failed for 65 completions in a row (max_reward_failures: 64), the last time: took longer than 60 s" in page
    [snippet] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[[1.0]]\n"


def test_what_cannot_be_logged_costs_no_reward_and_is_told_once(pool):
    ours = pool("bad_log")
    first_call, second = ours.score(scoring()), ours.score(scoring())
    assert first(first_call) == [1.0] * 3 and not first_call.failures
    [note] = first_call.notes
    assert re.search(r"bad_log .*gave log_extra\('one'\) 2 values, expected one for each of the 3 completions", note)
    assert second.notes == []


def test_a_process_that_was_killed_is_replaced_and_told(pool):
    ours = pool("length")
    ours.score(scoring())
    for worker in ours.workers:
        worker.process.kill()
        worker.process.wait()
    scored = ours.score(scoring())
    assert first(scored) == [1.0, 2.0, 3.0]
    assert "a process that calls rewards is gone (its process was killed by SIGKILL" in scored.notes[0]


# ---------------------------------------------------------------- many threads


def at_once(*calls):
    """Start each call in a thread of its own. Returns their futures."""
    futures = []
    for call in calls:
        future = Future()

        def work(call=call, future=future):
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        futures.append(future)
    return futures


def texts_of(*completions: str, **fields: Any) -> Scoring:
    count = len(completions)
    given = {
        "prompts": ["p"] * count,
        "completions": list(completions),
        "completion_ids": [[1]] * count,
        "columns": {"gate": [fields.pop("gate", "")] * count},
    }
    return scoring(**(given | fields))


GATED = """
import os, time
def gated(completions, gate):
    open(gate[0] + ".began", "w").close()
    while not os.path.exists(gate[0]):
        time.sleep(0.005)
    return [float(len(c)) for c in completions]
def noisy(completions):
    if "bad" in completions:
        raise ValueError("bad")
    if "gone" in completions:
        os._exit(3)
    if "nan" in completions:
        return [float("nan") if c == "nan" else float(len(c)) for c in completions]
    if "few" in completions:
        return [1.0]
    return [float(len(c)) for c in completions]
"""


@pytest.fixture
def gated():
    Path("gated.py").write_text(GATED)


def wait_for(path: str) -> None:
    deadline = time.monotonic() + 20
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert Path(path).exists(), path


def test_threads_that_score_at_once_each_get_their_own_rewards(pool, gated):
    ours = pool("gated.py:noisy", "length", reward_workers=2)
    odd = ["bad", "gone", "nan", "few"]
    groups = [[odd[n // 5] if n % 5 == 0 else "x" * n, "y" * (n + 1)] for n in range(20)]
    found = [future.result(60) for future in at_once(*[partial(ours.score, texts_of(*group)) for group in groups])]
    for group, scored in zip(groups, found, strict=True):
        none = group[0] in odd and group[0] != "few"  # the second call, for each alone, gives one reward
        assert scored.values == [
            [None if none else 1.0 if group[0] == "few" else float(len(group[0])), float(len(group[0]))],
            [float(len(group[1]))] * 2,
        ]
        assert [index for index, _ in scored.failures.get("noisy", [])] == ([0] if none else [])
    assert len(ours.workers) <= 2


def test_a_slow_call_holds_up_one_worker_and_no_more(pool, gated):
    ours = pool("gated.py:gated", "length", reward_workers=2, reward_timeout=30.0)
    (slow,) = at_once(partial(ours.score, texts_of("slow", gate="go")))
    wait_for("go.began")
    Path("open").touch()
    for text in ("a", "bb", "ccc"):  # one after the other, while the first one hangs
        assert ours.score(texts_of(text, gate="open")).values == [[float(len(text))] * 2]
    assert not slow.done()
    Path("go").touch()
    assert slow.result(20).values == [[4.0, 4.0]]


def test_who_has_no_worker_comes_before_who_has_one(pool, gated):
    Path("other.py").write_text(GATED.replace("def gated", "def gated_too").replace("gate[0]", "(gate[0] + '2')"))
    ours = pool("gated.py:gated", "other.py:gated_too", "length", reward_workers=2, reward_timeout=60.0)
    (first,) = at_once(partial(ours.score, texts_of("one", gate="a")))
    wait_for("a.began")
    wait_for("a2.began")  # it has both workers, and a third call waits
    (second,) = at_once(partial(ours.score, texts_of("two", gate="b")))
    while len(ours.calls.jobs) < 2:
        time.sleep(0.005)
    earlier = ours.calls.jobs[0]
    Path("a").touch()
    wait_for("b.began")
    assert len(earlier.waiting) == 1 and not Path("b2.began").exists()
    for gate in ("a2", "b", "b2"):
        Path(gate).touch()
    assert first.result(20).values == second.result(20).values == [[3.0] * 3]


def test_failures_in_a_row_are_counted_over_all_threads(pool):
    ours = pool("raises", max_reward_failures=5)
    calls = [partial(ours.score, texts_of("a", "b")) for _ in range(4)]
    problems = [future.exception(60) for future in at_once(*calls)]
    said = [str(problem) for problem in problems if problem is not None]
    assert said and all("failed for 6 completions in a row (max_reward_failures: 5)" in text for text in said)


def test_a_hanging_call_is_late_by_its_own_time_and_others_get_their_rewards(pool):
    ours = pool("hangs_for_one", reward_workers=2, reward_timeout=0.5)
    late, *others = at_once(*[partial(ours.score, texts_of(text, "z")) for text in ("yy", "a", "b", "c")])
    assert [future.result(30).values for future in others] == [[[1.0], [1.0]]] * 3
    scored = late.result(30)
    assert scored.values == [[None], [1.0]] and scored.failures == {"hangs_for_one": [(0, "took longer than 0.5 s")]}


def test_closing_ends_calls_under_way_with_an_error_and_leaves_no_process(pool, gated):
    ours = pool("gated.py:gated", reward_workers=1, reward_timeout=60.0)
    runs, waits = at_once(*[partial(ours.score, texts_of("a", gate=name)) for name in ("one", "one")])
    wait_for("one.began")
    while len(ours.calls.jobs) < 2:
        time.sleep(0.005)
    processes = [psutil.Process(worker.process.pid) for worker in ours.workers]
    ours.close()
    for future in (runs, waits):
        with pytest.raises(FtHostError, match="the rewards of this run are closed"):
            future.result(10)
    with pytest.raises(FtHostError, match="the rewards of this run are closed"):
        ours.score(texts_of("b", gate="one"))
    assert not ours.workers and not any(process.is_running() for process in processes)


def test_one_caller_that_gives_up_does_not_end_the_calls_of_others(pool, gated):
    ours = pool("odd", "gated.py:gated", reward_workers=2, reward_timeout=60.0)
    given = {"columns": {"gate": ["go"], "answer": [1.0]}}
    (runs,) = at_once(partial(ours.score, texts_of("a", **given)))
    wait_for("go.began")
    with pytest.raises(DataError, match="can't be sent to the process"):
        ours.score(texts_of("b", columns={"gate": ["go"], "answer": [lambda: 0]}))
    assert not runs.done()
    Path("go").touch()
    assert runs.result(20).values == [[1.0, 1.0]]


def test_a_request_that_the_process_does_not_read_holds_up_nobody(pool):
    ours = pool("length", reward_workers=2)
    first(ours.score(texts_of("a")))
    os.kill(ours.workers[0].process.pid, signal.SIGSTOP)  # it reads nothing more
    (stuck,) = at_once(partial(ours.score, texts_of("x" * 2_000_000)))
    while not ours.calls.busy:
        time.sleep(0.005)
    assert ours.score(texts_of("bb")).values == [[2.0]]
    assert not stuck.done()
    os.kill(ours.workers[0].process.pid, signal.SIGCONT)
    assert stuck.result(20).values == [[2_000_000.0]]

"""Checks about backends: each catches one that is wrong in this way; a new one passes, and the host's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conformance.wrong import Wrong, assert_caught, failures

from ft_host.registry import find
from ft_host.testing.conformance.check import DoesNotApply
from ft_host.testing.conformance.checks import backends, sampled
from ft_host.testing.conformance.declared import Declared
from ft_host.testing.conformance.subject import Materials, Subject

CHECKS = [*sampled.CHECKS, *backends.CHECKS]
GENERATE = "@hookimpl\ndef ft_generate(requests, sampling, run):\n"
# an engine that samples as the host's own, but with another seed
OTHER_ENGINE = """
from dataclasses import replace

from ft_host.generation import transformers
from ft_host.generation.engine import TransformersEngine


class Engine(TransformersEngine):
    def submit(self, key, request, sampling):
        super().submit(key, request, replace(sampling, seed=sampling.seed + 1))


@hookimpl
def ft_engine(place):
    return Engine(place)


@hookimpl
def ft_generate(requests, sampling, run):
    return transformers.ft_generate(requests, sampling, run)


def slow_and_easy_to_read(requests, sampling, run):
"""


def wrong(name: str, old: str, new: str, fails: str, *also: str) -> Wrong:
    return Wrong(name=name, kind="backend", file="backend.py", old=old, new=new, fails=fails, also=also)


WRONG = [
    wrong(
        "log-probs of another temperature",
        "logprobs.append(float(logp[token]))",
        "logprobs.append(float(logits.log_softmax(-1)[token]))",
        "backend-log-probs",
    ),
    wrong("half of the noise", "pick(logp, float(share))", "pick(logp, float(share) / 2)", "backend-distribution"),
    wrong("the least likely tokens", "logits.argmax()", "logits.argmin()", "backend-greedy"),
    wrong("top_k that is ignored", '"top_k": 0, ', "", "backend-cuts"),
    wrong("noise by the place in the call", " if request.number is None else request.number", "", "backend-noise"),
    wrong(
        "the tokenizer's end token alone",
        "set(end_tokens(model, run.tokenizer, sampling))",
        "{run.tokenizer.eos_token_id}",
        "backend-stop",
    ),
    wrong("the request's limit is ignored", "min(wanted, ", "min(", "backend-limits"),
    wrong("prompts without tokens", "if not ids or limit < 1:", "if limit < 1:", "backend-prompts"),
    wrong(
        "a process without rows",
        "model, seed = run.policy.causal_lm, sampling.seed",
        "most = max(len(each.prompt_ids) for each in requests)\n    model, seed = run.policy.causal_lm, sampling.seed",
        "backend-order",
    ),
    wrong(
        "a copy of the first weights",
        "model, seed = run.policy.causal_lm, sampling.seed",
        "import copy\n\n    model, seed = run.backend_state.get('model') or copy.deepcopy(run.policy.causal_lm),"
        " sampling.seed\n    run.backend_state['model'] = model",
        "backend-weights",
        "backend-stop",  # the copy has the first generation config too
    ),
    wrong("the mode isn't put back", "run.policy.train(training)", "pass", "backend-policy"),
    wrong(
        "the engine has other noise",
        "\n\n@hookimpl\ndef ft_generate(requests, sampling, run):\n",
        OTHER_ENGINE,
        "backend-engine",
    ),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_it_is_caught(wrong, tmp_path):
    [module] = [each for each in (sampled, backends) if wrong.fails in {check.id for check in each.CHECKS}]
    assert_caught(module.CHECKS, wrong, tmp_path)


def test_a_new_one_passes(tmp_path):
    assert failures(CHECKS, None, "backend", tmp_path) == []


def test_every_check_has_a_wrong_backend():
    assert {check.id for check in CHECKS} == {wrong.fails for wrong in WRONG}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The backend `transformers` as what is asked about."""
    folder = tmp_path_factory.mktemp("own")
    info = find("backend", "transformers")
    materials = Materials(folder / "materials")
    materials.folder.mkdir()
    return Subject(
        distribution="ft-host",
        plugin=info,
        plugins=(info,),
        package=None,
        declared=Declared(),
        materials=materials,
        folder=folder,
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_the_hosts_own_passes(check, own):
    found = check.test(own)
    if check.id == "backend-cuts":
        assert found == {"kept": ["top_p", "top_k", "min_p", "repetition_penalty"], "refused": []}


def test_a_module_that_is_missing_is_a_reason_to_ask_nothing(own):
    away = replace(own, declared=Declared(needs={"no_such_engine": "make.sh installs it"}))
    with pytest.raises(DoesNotApply, match="no_such_engine isn't installed here: make.sh installs it"):
        backends.CHECKS[0].test(away)

"""Steps that are captured once and replayed: what they give, when they are captured, and what can't be.

`Tapes` stand in for a GPU's graphs: they replay operators on the tensors that these had when they were recorded.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ft_host.errors import OutOfMemory
from ft_host.generation import decode, frames, loop, place
from ft_host.generation.jobs import Job
from ft_host.generation.prompts import cache_argument, prefill, prompts_of
from ft_host.testing import models
from ft_host.testing.generation import generating_run
from ft_host.testing.tape import Tapes, is_view
from ft_host.types import Completion, Request, Sampling

LENGTHS = (3, 11, 1, 7, 7, 20, 14, 2)


@pytest.fixture
def tapes(monkeypatch) -> Tapes:
    """The CPU is taken for a device on which steps are captured, and reading waits."""
    recorder = Tapes()
    monkeypatch.setitem(frames.RECORDERS, "cpu", lambda: recorder)
    monkeypatch.setattr(decode, "STRETCH", {})
    monkeypatch.setattr(decode, "PRICE", {})
    monkeypatch.setattr(frames, "LEAST_COLUMNS", 64)
    monkeypatch.setattr(decode, "ROOM", 10)
    return recorder


def made(name: str, **overrides):
    return models.FAMILIES[name](tie_word_embeddings=False, **overrides).eval()


def asked(limit: int = 40, lengths=LENGTHS, times: int = 1) -> list[Request]:
    rng = np.random.default_rng(0)
    texts = [rng.integers(10, 250, length).tolist() for length in lengths for _ in range(times)]
    return [Request(prompt_ids=ids, number=number, max_new_tokens=limit) for number, ids in enumerate(texts)]


def given(model, requests: list[Request], sampling: Sampling, size: int = 6, ends=range(20, 22)) -> list[Completion]:
    model.generation_config.eos_token_id = list(ends)
    return generating_run(model, decode_batch_size=size).generate(requests, sampling)


def one_by_one(model, *args, **kwargs) -> list[Completion]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "RECORDERS", {})
        return given(model, *args, **kwargs)


def close(some: list[Completion], others: list[Completion], atol: float = 2e-5) -> None:
    for one, other in zip(some, others, strict=True):
        assert replace(one, logprobs=[]) == replace(other, logprobs=[])
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=atol)


# ---------------------------------------------------------------- what they give


@pytest.mark.parametrize("name", ["llama", "qwen", "mistral", "gemma", "gpt2", "moe"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_replayed_steps_give_the_tokens_of_steps_one_by_one(name, penalty, tapes):
    model = made(name)
    sampling = Sampling(max_new_tokens=40, seed=3, top_p=0.95, repetition_penalty=penalty)
    expected = one_by_one(model, asked(), sampling, ends=range(20, 23))
    assert not tapes.replays
    close(given(model, asked(), sampling, ends=range(20, 23)), expected)
    assert frames.way_of(model) == frames.GRAPHS_USED and tapes.replays >= 8
    assert "stop" in {completion.finish_reason for completion in expected}


@pytest.mark.parametrize("size", [3, 8])
def test_rows_enter_and_leave_while_steps_are_replayed(size, tapes):
    model, sampling = made("qwen"), Sampling(max_new_tokens=70, seed=1)
    requests = [replace(request, max_new_tokens=9 + 7 * number % 61) for number, request in enumerate(asked(times=2))]
    close(given(model, requests, sampling, size), one_by_one(model, requests, sampling, size))
    assert tapes.replays > 8


def test_models_with_learned_positions_are_asked_for_none_that_they_lack(tapes):
    model, sampling = made("gpt2", n_positions=45), Sampling(max_new_tokens=40, seed=1)
    requests = asked(lengths=(5, 9, 12, 6))
    found = given(model, requests, sampling, ends=())
    close(found, one_by_one(model, requests, sampling, ends=()))
    assert [len(each.token_ids) for each in found] == [40, 36, 33, 39]
    assert tapes.replays


def test_places_without_a_row_leave_no_trace(tapes):
    """Five rows in a frame of eight; the places of three that have left hold numbers that aren't finite."""
    model, sampling = made("qwen"), Sampling(max_new_tokens=60, seed=1)
    decoder, jobs = decode.Decoder(model, sampling, 5), [Job(row, [9, 8, 7 + row], row, 60) for row in range(5)]
    with torch.no_grad():
        for prompt in prompts_of(jobs):
            prefill(model, [prompt])
            decoder.enter(prompt)
        assert not decoder.leave() and len(decoder.token) == 8
        decoder.start[5:] = 10**6
        while not all(row.ended for row in decoder.rows):
            decoder.advance()
    assert all(torch.isfinite(buffer).all() for layer in decoder.layers for buffer in (layer.keys, layer.values))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "RECORDERS", {})
        alone = sorted(loop.decode(model, jobs, sampling, 5), key=lambda row: row.job.index)
    for row in decoder.rows:
        assert row.tokens == alone[row.job.index].tokens


# ---------------------------------------------------------------- frames


def test_frames_are_few_and_large_enough():
    assert [frames.round_rows(rows) for rows in (1, 2, 3, 33, 64, 65, 128, 129, 250)] == [
        *(1, 2, 4, 64, 64, 128, 128, 192, 256)
    ]
    columns = [frames.round_columns(columns) for columns in range(1, 5000)]
    assert sorted(set(columns)) == [128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
    assert all(columns[count - 1] >= count for count in range(1, 5000))


def test_a_step_depends_on_its_frame_alone(tapes):
    """The same operators on the same shapes in the same order, whatever the rows, the column and the sampled tokens."""
    model = made("mistral")  # with a window
    given(model, asked(60, (3, 9, 4)), Sampling(max_new_tokens=60, seed=1), ends=())
    given(model, asked(60, (8, 8, 8, 8)), Sampling(max_new_tokens=60, seed=2), ends=())
    signed: dict[tuple, set[tuple]] = {}
    for tape in tapes.tapes:
        (mask,) = {result.shape for func, _, _, result in tape if func is torch.ops.aten.bitwise_and.Tensor}
        calls = [(str(func), [getattr(each, "shape", each) for each in tree_leaves(args)]) for func, args, *_ in tape]
        signed.setdefault(tuple(mask), set()).add(str(calls))
    assert len(tapes.tapes) > len(signed) >= 2
    assert all(len(each) == 1 for each in signed.values())


def test_a_frame_is_captured_when_it_is_needed_again_and_not_before(tapes):
    given(made("qwen"), asked(17, (3, 3)), Sampling(max_new_tokens=17, seed=1), ends=())
    assert len(tapes.tapes) == 1 and tapes.replays == 8  # one token of the prompt, 8 steps one by one, 8 replayed
    tapes.tapes.clear()
    given(made("qwen"), asked(9, (3, 3)), Sampling(max_new_tokens=9, seed=1), ends=())
    assert not tapes.tapes


def test_columns_that_no_row_needs_are_dropped_in_place(tapes):
    """Rows that come and go for hundreds of tokens: buffers of the size that the longest need, not of all columns."""
    model, sampling = made("qwen"), Sampling(max_new_tokens=30, seed=1)
    requests = asked(30, (6,) * 24)
    decoders = []
    enter = decode.Decoder.enter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode.Decoder, "enter", lambda self, prompt: (decoders.append(self), enter(self, prompt))[1])
        requests = [replace(each, max_new_tokens=11 + number % 20) for number, each in enumerate(requests)]
        close(given(model, requests, sampling, 3, ends=()), one_by_one(model, requests, sampling, 3, ends=()))
    assert decoders[0].layers[0].shape == (4, 64)  # 36 columns are needed, and room for ten
    assert len(tapes.tapes) < 8 < tapes.replays


# ---------------------------------------------------------------- weights


def test_replayed_steps_see_weights_that_have_changed(tapes):
    """Under autocast too, where linear layers' weights are cast once for all steps."""
    model, sampling = made("qwen"), Sampling(max_new_tokens=60, temperature=0)
    jobs = [Job(row, [9, 8, 7 + row], row, 50) for row in range(3)]

    def tokens(decoder) -> list[list[tuple[int, float]]]:
        """With their log-probs."""
        torch.clear_autocast_cache()  # as at the end of each call of the engine
        for _ in range(3):
            decoder.advance()
        return [list(zip(row.tokens[-24:], row.logprobs[-24:], strict=True)) for row in decoder.rows]

    def begun():
        decoder = decode.Decoder(model, sampling, 3)
        for prompt in prompts_of(jobs):
            prefill(model, [prompt])
            decoder.enter(prompt)
        decoder.leave()
        return decoder

    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled):
            decoder, before = begun(), tapes.replays
            tokens(decoder)
            assert tapes.replays > before and bool(decoder.frames.casts) == enabled
            assert {value.dtype for value in decoder.frames.casts.values()} <= {torch.bfloat16}
            kept = [(layer.keys.clone(), layer.values.clone()) for layer in decoder.layers]
            state = decoder.token.clone(), decoder.start.clone(), decoder.used.first, decoder.used.end
            said = [list(row.tokens) for row in decoder.rows]
            for parameter in model.parameters():
                parameter.mul_(1.5)
            decoder.use(model)
            found = tokens(decoder)
            with pytest.MonkeyPatch.context() as patch:  # the same rows, step by step
                patch.setattr(decoder, "frames", None)
                for layer, (keys, values) in zip(decoder.layers, kept, strict=True):
                    layer.keys, layer.values = keys, values
                decoder.token, decoder.start = state[:2]
                decoder.used.first, decoder.used.end = state[2:]
                for row, old in zip(decoder.rows, said, strict=True):
                    row.tokens[:], row.ended = old, False
                for one, other in zip(tokens(decoder), found, strict=True):
                    # in bfloat16 two tokens may be as likely as each other; what comes after them is another text
                    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a[0] != b[0]), 23)
                    assert enabled or same == 23
                    differences = [abs(a[1] - b[1]) for a, b in zip(one, other, strict=True)][: same + 1]
                    assert max(differences) < (0.2 if enabled else 1e-4), differences  # 1 and more with the old weights


def test_weights_that_have_moved_end_the_graphs(tapes):
    model = made("qwen")
    decoder = decode.Decoder(model, Sampling(max_new_tokens=90, seed=0), 2)
    (prompt,) = prompts_of([Job(0, [5, 6], 0, 90)])
    with torch.no_grad():
        prefill(model, [prompt])
        decoder.enter(prompt)
        decoder.leave()
        for _ in range(2):
            decoder.advance()
        assert decoder.frames.graphs
        decoder.use(model)
        decoder.advance()
        assert decoder.frames.graphs  # the same weights
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        decoder.use(model)
        decoder.advance()
    assert not decoder.frames.graphs and decoder.frames.recorder is None  # a pool without graphs takes no other


# ---------------------------------------------------------------- what can't be captured


def test_a_model_that_waits_in_its_forward_goes_on_one_by_one(tapes):
    model, sampling = made("qwen"), Sampling(max_new_tokens=40, seed=3)
    model.model.norm.register_forward_hook(lambda module, args, output: output * output.isfinite().all().item())
    close(given(model, asked(), sampling), one_by_one(model, asked(), sampling))
    assert "can't be captured (operation not permitted" in frames.way_of(model) and not tapes.replays


def test_after_a_capture_that_fails_work_goes_on_where_it_was(tapes, monkeypatch):
    """Both errors of torch's: that of the operator, and that of the capture's end, which leaves its stream in place."""
    streams = ["the run's"]

    @contextlib.contextmanager
    def graph(graph, **how):
        assert how == {"pool": "a pool", "capture_error_mode": "thread_local"}
        streams.append("a capture's")
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    cuda = {
        "graph_pool_handle": lambda: "a pool",
        "CUDAGraph": SimpleNamespace,
        "graph": graph,
        "current_stream": lambda: streams[-1],
        "set_stream": streams.append,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setitem(frames.RECORDERS, "cpu", frames.CudaGraphs)
    model, sampling = made("qwen"), Sampling(max_new_tokens=20, seed=3)
    model.model.norm.register_forward_hook(lambda *args: bad() if streams[-1] == "a capture's" else None)

    def bad():
        raise RuntimeError("operation not permitted when stream is capturing\nSearch for it")

    close(given(model, asked(20), sampling), one_by_one(model, asked(20), sampling))
    assert streams == ["the run's", "a capture's", "the run's"]
    expected = "one by one: a step can't be captured (operation not permitted when stream is capturing)"
    assert frames.way_of(model) == expected


def test_a_model_that_reads_the_number_of_columns_is_found_out(tapes):
    model, sampling = made("qwen"), Sampling(max_new_tokens=20, seed=3)
    forward, argument = model.forward, cache_argument(model)

    def counting(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits[..., 5] += kwargs[argument].layers[0].get_mask_sizes(0)[0]
        return output

    counting.__signature__ = __import__("inspect").signature(forward)
    model.forward = counting
    close(given(model, asked(20), sampling), one_by_one(model, asked(20), sampling))
    assert "log-probs differ by" in frames.way_of(model) and not tapes.tapes


def test_an_attention_with_masks_of_its_own_goes_on_one_by_one(tapes):
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register("another", AttentionInterface._global_mapping["sdpa"])
    AttentionMaskInterface.register("another", AttentionMaskInterface._global_mapping["sdpa"])
    model, sampling = made("qwen"), Sampling(max_new_tokens=20, seed=3)
    model.set_attn_implementation("another")
    given(model, asked(20), sampling)
    assert frames.way_of(model) == "one by one: attn_implementation another makes a mask of its own in each step"


def test_memory_that_runs_out_in_a_capture_is_no_reason_to_go_on(tapes, monkeypatch):
    def full(step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tapes, "capture", full)
    with pytest.raises(OutOfMemory, match="in generation of step 1"):
        given(made("qwen"), asked(), Sampling(max_new_tokens=40, seed=3))


# ---------------------------------------------------------------- launches


class Launches(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not is_view(func)
        return func(*args, **(kwargs or {}))


def test_a_token_takes_a_few_launches_however_many_layers_there_are(tapes):
    counts = []
    for layers in (1, 4):
        model = made("qwen", num_hidden_layers=layers)
        decoder = decode.Decoder(model, Sampling(max_new_tokens=90, seed=0, top_p=0.9), 3)
        with torch.no_grad():
            for prompt in prompts_of([Job(row, [9, 8, 7 + row], row, 90) for row in range(3)]):
                prefill(model, [prompt])
                decoder.enter(prompt)
            decoder.leave()
            while not tapes.replays:
                decoder.advance()
            with Launches() as launches:
                decoder.advance()
        counts.append(launches.count / frames.STEPS)
        tapes.replays = 0
    assert counts[0] == counts[1] <= 3


# ---------------------------------------------------------------- what is told


def test_a_run_is_told_how_its_tokens_are_decoded_once(tapes, monkeypatch):
    facts: list[dict] = []
    monkeypatch.setattr("ft_host.run.Run.record_facts", lambda self, told: facts.append(told))
    model, sampling = made("qwen"), Sampling(max_new_tokens=9, seed=1)
    run = generating_run(model, decode_batch_size=3)
    for _ in range(2):
        run.generate(asked(9, (3, 4)), sampling)
    assert facts == [{"plan/decoding": frames.GRAPHS_USED}]
    assert run.said == {f"decoding: {frames.GRAPHS_USED}"}


# ---------------------------------------------------------------- how many at a time


def test_on_a_cpu_64_completions_are_generated_at_a_time_and_elsewhere_what_fits(monkeypatch):
    run = generating_run(made("qwen", max_position_embeddings=4096), max_length=800, max_completion_length=224)
    assert place.rows_of(run) == 64
    monkeypatch.setattr(type(run), "device", torch.device("cuda"))
    total = [0]
    monkeypatch.setattr(place, "memory_of", lambda device: SimpleNamespace(total=total[0]))
    weights = sum(parameter.nbytes for parameter in run.policy.parameters())
    row = 1024 * 2 * (2 * 2 * 16) * 4  # tokens, layers, keys and values of two heads of 16, float32
    for rows, expected in [(300, 256), (101, 96), (3, 8)]:
        total[0] = 4 * weights + int(rows * row / 0.7)
        assert place.rows_of(run) == expected
    run.policy.requires_grad_(False)
    total[0] = weights + int(50 * row / 0.7)
    assert place.rows_of(run) == 48
    assert place.generation_facts(run) == {}  # it neither trains on completions nor scores any
    run.config.eval_reward = ["length"]
    assert place.generation_facts(run) == {"plan/decode_batch_size": 48}
    run.config.decode_batch_size = 7
    assert place.rows_of(run) == 7


def test_the_benchmark_counts_a_layer_step_by_step_and_none_when_replayed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import decode_operators

    before = dict(frames.RECORDERS), decode.STRETCH
    decode_operators.main(["--layers", "1", "2", "--kinds", "bfloat16", "--rows", "2"])
    one, two = ([float(cell) for cell in line.split("|")[3:7]] for line in capsys.readouterr().out.splitlines()[2:])
    assert 40 < two[0] - one[0] < 80
    assert one[2] == two[2] < 3 and one[1] == one[3] == 1 / frames.STEPS
    assert (dict(frames.RECORDERS), decode.STRETCH) == before

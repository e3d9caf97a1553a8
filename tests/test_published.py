"""Weights through a folder: what is written, what is refused, and that a reader has them to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ft_host.batch import Segment, flat_batch
from ft_host.config import RunConfig
from ft_host.errors import FtHostError
from ft_host.models import load_policy, published, shard, weights_folder
from ft_host.models.published import gathered_pieces, load_published, read_published, trained_tensors
from ft_host.models.weights_folder import MANIFEST, WeightsFolder
from ft_host.testing import leave
from ft_host.testing.models import tiny_tokenizer

CPU = torch.device("cpu")
LORA = {"use_peft": True, "lora_r": 4, "lora_modules_to_save": ["lm_head"]}


def policy_of(tiny, **fields):
    torch.manual_seed(0)
    return load_policy(RunConfig(model=str(tiny / "model"), **fields), tiny_tokenizer(), CPU)


def changed(policy, seed, share=1.0):
    """Change some of the trained values, as an update in a short type would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, weight in trained_tensors(policy):
            hit = torch.rand(weight.shape, generator=generator) < share
            weight.add_(hit * 0.25)


def same(one, other):
    theirs = dict(other.causal_lm.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in one.causal_lm.named_parameters())


@pytest.mark.parametrize("fields", [{}, LORA, {"dtype": "bfloat16"}], ids=["whole model", "adapter", "bfloat16"])
def test_a_reader_has_each_version_to_the_bit_whole_and_as_changes(tiny, tmp_path, fields):
    policy, reader = policy_of(tiny, **fields), policy_of(tiny, **fields)
    folder = WeightsFolder(tmp_path, piece=20_000)
    have = None
    for version, share in ((0, 1.0), (1, 0.01), (2, 1.0), (4, 0.01)):
        changed(policy, version, share)
        place = folder.publish(version, gathered_pieces(policy))
        assert json.loads((place / MANIFEST).read_text())["base"] == (have if share < 1 else None)
        have = load_published(reader, place, have)
        assert have == version
        same(policy, reader)
    assert len(list((tmp_path / "version-0").glob("*.safetensors"))) > 1, "in pieces"


def test_changes_are_small_and_bits_count_not_equality(tiny, tmp_path):
    policy = policy_of(tiny)
    folder = WeightsFolder(tmp_path)
    name, weight = trained_tensors(policy)[0]
    with torch.no_grad():
        weight.view(-1)[0] = 0.0
    folder.publish(0, gathered_pieces(policy))
    with torch.no_grad():
        weight.view(-1)[0] = -0.0  # equal, and another value
    found = read_published(folder.publish(1, gathered_pieces(policy)), 0)
    assert list(found.values) == [name] and found.indices[name].tolist() == [0]
    assert torch.signbit(found.values[name]).tolist() == [True]
    nothing = folder.publish(2, gathered_pieces(policy))
    assert [file.name for file in nothing.iterdir()] == [MANIFEST], "nothing has changed"
    assert load_published(policy, nothing, 1) == 2


def test_an_adapter_goes_alone(tiny, tmp_path):
    place = WeightsFolder(tmp_path).publish(3, gathered_pieces(policy_of(tiny, **LORA)))
    names = json.loads((place / MANIFEST).read_text())["tensors"]
    assert names and all(".lora_" in name or "modules_to_save" in name for name in names)
    assert any("modules_to_save" in name for name in names)


def test_a_reader_that_missed_a_version_says_so_and_gets_the_whole(tiny, tmp_path):
    policy, reader = policy_of(tiny), policy_of(tiny)
    folder = WeightsFolder(tmp_path)
    load_published(reader, folder.publish(0, gathered_pieces(policy)), None)
    for version in (1, 2):
        changed(policy, version, 0.01)
        place = folder.publish(version, gathered_pieces(policy))
    with pytest.raises(
        FtHostError, match=r"version-2: holds what changed since version 1, and the sampler has version 0"
    ):
        load_published(reader, place, 0)
    with pytest.raises(FtHostError, match="and the sampler has none"):
        load_published(reader, place, None)
    assert load_published(reader, folder.whole(), 0) == 2
    same(policy, reader)


def test_a_file_that_is_not_as_it_was_written_is_named(tiny, tmp_path):
    policy = policy_of(tiny)
    place = WeightsFolder(tmp_path).publish(0, gathered_pieces(policy))
    file = place / "weights-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(FtHostError, match=r"version-0/weights-00001\.safetensors: its checksum is \w+; expected \w+"):
        load_published(policy, place, None)
    file.write_bytes(data[:-8])
    with pytest.raises(FtHostError, match=rf"has {len(data) - 8} bytes; expected {len(data)}"):
        load_published(policy, place, None)
    (place / MANIFEST).write_text('{"version"')
    with pytest.raises(FtHostError, match=r"manifest\.json is damaged"):
        load_published(policy, place, None)
    with pytest.raises(FtHostError, match=r"version-9/manifest\.json can't be read: No such file"):
        load_published(policy, tmp_path / "version-9", None)


def test_tensors_of_another_model_are_refused_before_anything_changes(tiny, tmp_path):
    policy = policy_of(tiny)
    named = trained_tensors(policy)
    first, (last, weight) = named[0][0], named[-1]
    before = policy.causal_lm.get_parameter(first).clone()
    for tensors, message in (
        ([(first, torch.zeros_like(named[0][1])), (last + "x", weight)], f"has the tensor {last}x, which isn't here"),
        ([(name, each.half()) for name, each in named], "is float16 of shape .*; expected float32"),
        (named[:-1], f"lacks the tensor {last}"),
    ):
        place = WeightsFolder(tmp_path / str(len(tensors))).publish(0, [tensors])
        with pytest.raises(FtHostError, match=message):
            load_published(policy, place, None)
    assert torch.equal(policy.causal_lm.get_parameter(first), before)


def test_a_disk_that_refuses_leaves_no_half_version_and_the_next_is_whole(tiny, tmp_path, monkeypatch):
    policy = policy_of(tiny)
    folder = WeightsFolder(tmp_path, piece=20_000)
    folder.publish(0, gathered_pieces(policy))
    write_bytes, written = Path.write_bytes, []

    def full(path, data):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, data)

    changed(policy, 1)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(
            FtHostError, match="the weights of step 1 could not be written for the sampler: the disk is full"
        ):
            folder.publish(1, gathered_pieces(policy))
    assert [place.name for place in tmp_path.iterdir()] == ["version-0"]
    changed(policy, 2, 0.01)
    assert read_published(folder.publish(2, gathered_pieces(policy)), None).base is None


def test_old_versions_go_and_the_rest_with_the_folder(tiny, tmp_path):
    policy, folder = policy_of(tiny), WeightsFolder(tmp_path / "weights")
    for version in (1, 2, 10):
        folder.publish(version, gathered_pieces(policy))
    folder.whole()
    folder.forget(10)
    assert sorted(place.name for place in folder.path.iterdir()) == ["version-10", "version-10-whole"]
    folder.remove()
    assert not folder.path.exists()


def test_a_folder_in_memory_outlives_no_process_and_needs_room(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_folder, "MEMORY", tmp_path / "shm")
    run = tmp_path / "run"
    assert WeightsFolder.made(run, 1).path == run / "weights", "there is no such place"
    (tmp_path / "shm").mkdir()
    assert WeightsFolder.made(run, 1 << 60).path == run / "weights", "there is no room"
    lived = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from ft_host.models import weights_folder as w;"
            "w.MEMORY = Path(sys.argv[1]); print(w.WeightsFolder.made(Path('x'), 1).path)",
            str(tmp_path / "shm"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    left = Path(lived.stdout.strip())
    assert left.is_dir()
    one = WeightsFolder.made(run, 1)
    assert one.path.parent == tmp_path / "shm" and not left.exists()
    other = WeightsFolder.made(run, 1)
    assert one.path.is_dir(), "its owner lives"
    one.remove()
    other.remove()
    assert list((tmp_path / "shm").iterdir()) == []


def test_memory_that_others_have_filled_is_left_for_the_runs_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_folder, "MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    policy, reader, write_bytes = policy_of(tiny), policy_of(tiny), Path.write_bytes
    folder = WeightsFolder.made(tmp_path / "run", 1)
    load_published(reader, folder.publish(0, gathered_pieces(policy)), None)

    def full(path, data):
        if (tmp_path / "shm") in path.parents:
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    changed(policy, 1, 0.01)
    place = folder.publish(1, gathered_pieces(policy))
    assert place == tmp_path / "run" / "weights" / "version-1" and not list((tmp_path / "shm").iterdir())
    assert load_published(reader, place, 0) == 1
    same(policy, reader)


# ---------------------------------------------------------------- two ranks


def ranks(model: str, out: str) -> None:
    """What each of two ranks does when this file is run as a script."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    config = RunConfig(model=model, distributed_strategy="fsdp2", bf16=True)
    policy = shard(load_policy(config, tiny_tokenizer(), CPU), config).eval()
    with torch.no_grad():  # which leaves the root's weights whole
        policy(flat_batch([Segment(input_ids=[5, 6, 7], labels=[5, 6, 7], row=0)], num_rows=1))
    folder = WeightsFolder(Path(out) / "weights", piece=20_000)
    published.PIECE = 20_000
    publisher = published.Publisher(folder, accelerator, lambda: gathered_pieces(policy))
    place = publisher.publish(0)
    assert (place is None) == bool(accelerator.process_index)
    if accelerator.is_main_process:
        folder.take = refuse
    try:
        publisher.publish(1)
    except FtHostError as error:
        (Path(out) / f"said-{accelerator.process_index}").write_text(str(error))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    leave(0)  # as a rank of `ft-host train` does: gloo's threads may abort a process that tears itself down


def refuse(piece):
    raise MemoryError("no room for a copy")


@pytest.mark.slow
def test_sharded_weights_are_gathered_whole_and_a_failure_is_raised_on_all_ranks(tiny, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    done = subprocess.run(
        [sys.executable, *command, str(tiny / "model"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reader = policy_of(tiny)
    changed(reader, 5)
    assert load_published(reader, tmp_path / "weights" / "version-0", None) == 0
    same(policy_of(tiny), reader)
    said = [(tmp_path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "no room for a copy" in said[0]
    assert not (tmp_path / "weights" / "version-1").exists()


if __name__ == "__main__":
    ranks(*sys.argv[1:])

"""Weights through a folder: what was changed arrives, and nothing else; what can't be used is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ft_vllm.folder import Folder
from ft_vllm.published import read_version
from ft_vllm.weights import gathered

from ft_host.api import WeightsFolder


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"matrix": torch.randn(300, 40), "vector": torch.randn(7), "fixed": torch.randn(50, 50)}


def pieces(named: dict[str, torch.Tensor]) -> list[list[tuple[str, torch.Tensor]]]:
    return [[pair] for pair in named.items()]


def size(place: Path) -> int:
    return sum(file.stat().st_size for file in place.iterdir())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_changes_go_alone_and_lead_to_the_same_bits(tmp_path):
    folder, named = Folder(WeightsFolder(tmp_path)), weights()
    whole = folder.take(pieces(named), 3)
    held, version = read_version(whole, {}, None)
    assert version == 3 and same(held, named)
    whole_size = size(whole)
    named["matrix"][5, 3], named["matrix"][299, 39], named["vector"][0] = 1.0, float("nan"), -0.0
    before = {name: tensor.clone() for name, tensor in held.items()}
    changed = folder.take(pieces(named), 4)
    assert size(changed) < whole_size / 10 and not whole.exists()
    new, version = read_version(changed, held, 3)
    assert version == 4 and same({name: bits(new[name]) for name in new}, {name: bits(named[name]) for name in named})
    assert same(held, before)  # one that is refused half-way has what it had


def test_a_reader_that_missed_a_version_is_given_the_whole(tmp_path):
    folder, named = Folder(WeightsFolder(tmp_path)), weights()
    folder.take(pieces(named), 0)
    named["matrix"][0, 0] += 1
    changed = folder.take(pieces(named), 1)
    for held, version in (({}, None), (weights(), 7)):
        with pytest.raises(LookupError, match=f"needs the whole.*changes version 0, and here is {version}"):
            read_version(changed, held, version)
    held, version = read_version(folder.whole(), {}, None)
    assert version == 1 and same(held, named)
    assert folder.whole() == folder.whole()  # written once, for all that miss it


def test_a_damaged_file_is_named(tmp_path):
    place = Folder(WeightsFolder(tmp_path)).take(pieces(weights()), 0)
    file = next(place.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RuntimeError, match=f"{file.name} isn't what was written"):
        read_version(place, {}, None)


def test_matrices_are_rounded_to_what_the_servers_compute_in(tmp_path):
    def rounded() -> list[list[tuple[str, torch.Tensor]]]:
        return pieces({name: gathered(tensor, torch.bfloat16) for name, tensor in named.items()})

    folder, named = Folder(WeightsFolder(tmp_path)), weights()
    held, _ = read_version(folder.take(rounded(), 0), {}, None)
    assert torch.equal(held["matrix"], named["matrix"].bfloat16()) and torch.equal(held["vector"], named["vector"])
    named["matrix"] *= 1 + 1e-5  # below what bfloat16 tells apart, but for few values
    changed = folder.take(rounded(), 1)
    new, _ = read_version(changed, held, 0)
    assert torch.equal(new["matrix"], named["matrix"].bfloat16())
    assert size(changed) < 0.2 * named["matrix"].numel() * 2

"""What a run on a CPU frees stays with its process until the run has ended."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ft_host.util import freed

MB = 2**20
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")

# Frees blocks one after the other, of 256 MiB in all, at the end of the heap, and says what the process holds then.
# With "let go" it does so twice.
SCRIPT = """
import ctypes, os, sys
from ft_host.util.freed import hand_back, keep_freed, let_go

def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
kept, before = sys.argv[1] != "leave" and keep_freed(), held()

def use():
    blocks = [library.malloc(8 << 20) for _ in range(32)]
    for block in blocks:
        ctypes.memset(block, 1, 8 << 20)
    for block in reversed(blocks):
        library.free(block)

use()
if sys.argv[1] == "let go":
    let_go()
    assert held() - before < 50
    use()
after = held()
hand_back()
print(kept, after - before, held() - before)
"""


def run(word: str, **variables: str) -> tuple[str, int, int]:
    own = {name: value for name, value in os.environ.items() if not freed.said({name: value})}
    command = [sys.executable, "-c", SCRIPT, word]
    said = subprocess.run(command, env={**own, **variables}, capture_output=True, text=True, check=True).stdout
    kept, after, given_back = said.split()
    return kept, int(after), int(given_back)


@glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_what_is_freed_is_kept_and_handed_back_at_the_end():
    kept, after, given_back = run("keep")
    assert kept == "True" and after > 200 and given_back < 50
    _, after, _ = run("leave")
    assert after < 100


@glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_what_was_let_go_is_given_back_and_the_next_is_kept():
    kept, after, given_back = run("let go")
    assert kept == "True" and after > 200 and given_back < 50


@pytest.mark.parametrize("kept", [True, False])
def test_a_process_that_keeps_nothing_has_nothing_to_let_go_of(monkeypatch, kept):
    asked = []
    monkeypatch.setattr(freed, "_keeps", kept)
    monkeypatch.setattr(freed.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    freed.let_go()
    assert asked == [0] * kept


@glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_who_has_told_glibc_what_to_do_is_obeyed():
    for variables in (
        {"MALLOC_TRIM_THRESHOLD_": str(MB)},
        {"GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={MB}:glibc.malloc.trim_threshold={MB}"},
    ):
        kept, after, _ = run("keep", **variables)
        assert kept == "False" and after < 100


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(freed.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(freed.ctypes, "CDLL", lambda name: pytest.fail("asked the C library"))
    assert not freed.keep_freed()
    freed.hand_back()

"""What benchmarks/gsm8k_rollouts.py pays for: values by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "gsm8k_rewards.py"


@pytest.fixture(scope="module")
def rewards():
    spec = importlib.util.spec_from_file_location("gsm8k_rewards", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("2 and 2 are <<2+2=4>>4, and that thrice <<3*(2+1)=9>>9, a third <<1/3=.33>>0.33.\n#### 4", 1),
        ("<<2+2=5>>5 and <<7-2*3=1>>1\n#### 5", 0.5),
        ("<<2000*3=6000>>6,000, of which <<6000-5=5995>>5995\n#### 5995", 1),  # with an earlier result
        ("<<5*3=15>>15, of which <<15-5=10>>10\n#### 10", 0),  # with numbers of nobody's
        ("<<2=2>>2 and <<-2=-2>>\n#### 2", 0),  # no calculations
        ("<<2-(3-1)=0>>0 and <<-2+4=2>>2\n#### 1,000", 1),
        ("<<2+2=4>>4, without an answer", 0),
        ("no calculation\n#### 4", 0),
        ("<<2+2=4>>4 and one that is broken off <<2+\n#### 4", 0.5),
        ("<<2+*2=4>>4\n#### 4", 0),
        ("<<1/0=1>>1\n#### 1", 0),
        ("<<(2+2=4>>4\n#### 4", 0),
    ],
)
def test_the_share_of_right_calculations(rewards, text, share):
    assert rewards.right_calculations(["1 or 2, or 2,000?"], [text]) == [pytest.approx(share)]


def test_answers(rewards):
    said = ["so\n#### 1,200", "so\n#### 1200.", "so 1200", "so\n#### 120"]
    assert rewards.right_answer(said, ["1200"] * 4) == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("<<2+2=4>>4, and <<4*300=1200>>1,200\n#### 1,200", 1),
        ("<<2+2=5>>5\n#### 5", 1),  # whether the calculation is right is another reward's
        ("<<2+2=4>>4, and <<4*3=12>>12\n#### 4", 0),
        ("no calculation\n#### 4", 0),
        ("<<2+2=4>>4, without an answer", 0),
        ("<<2+2=4>>4, and then\n#### 4\nand more", 0),
    ],
)
def test_an_answer_that_follows(rewards, text, follows):
    assert rewards.answer_follows([text]) == [follows]

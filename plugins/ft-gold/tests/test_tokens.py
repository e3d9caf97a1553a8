"""Two tokenizers over one text: by hand, and whatever the text."""

from __future__ import annotations

import random

import pytest
from ft_gold.config import GOLDConfig
from ft_gold.tokens import LONGEST, Meeting, as_teacher_reads, groups_of, meeting
from ft_gold.vocabulary import Vocabulary

from ft_host.api import ConfigError
from ft_host.testing import chat_tokenizer, other_tokenizer, save_tiny, tiny_llama, tiny_tokenizer

TEXTS = [
    "the quick brown apples, step by step",
    "42 plus 30 is how many?\n",
    "über 1 €, 学习 and 🙂🙂!",
    " a  lazy\tdog ",
    "",
]


def sentencepiece():
    """As Llama 2's: a blank before each text, blanks as ▁, bytes for what isn't in the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [
        "\u2581",
        "t",
        "h",
        "e",
        "q",
        "u",
        "i",
        "c",
        "k",
        "\u2581t",
        "he",
        "\u2581the",
        "\u2581q",
        "ui",
        "ck",
        "s",
        "p",
    ]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("\u2581", "q"), ("u", "i"), ("c", "k")]
    model = models.BPE({name: index for index, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = {
    "byte-level": other_tokenizer,
    "with all bytes": lambda: chat_tokenizer(vocab_size=300),
    "sentencepiece": sentencepiece,
}


def words(tokens: list[str]):
    """A tokenizer of whole characters, without a decoder of its own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


# ---------------------------------------------------------------- one


@pytest.mark.parametrize("kind", ["with all bytes", "sentencepiece"])
@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens(kind, text):
    """All tokens of a text spell it, and each ends where its own bytes do."""
    vocabulary = Vocabulary(KINDS[kind](), "model")
    ids = vocabulary.encode(text)
    ends = vocabulary.ends_of(ids, text)
    assert len(ends) == len(ids) and (not ids or ends[-1] == len(text.encode()))
    said, own = vocabulary.spelled(ids)
    blank = kind == "sentencepiece" and bool(text)
    assert said == " " * blank + text and own == [end + blank for end in ends]


def test_bytes_that_are_no_text():
    """A character that is cut, and one that goes on as something else: U+FFFD in what is said, and no end goes back."""
    vocabulary = Vocabulary(chat_tokenizer(vocab_size=300), "model")
    whole = vocabulary.encode("a学b")
    assert len(whole) == 5  # three bytes of one character
    assert vocabulary.spelled(whole[:3]) == ("a\ufffd", [1, 2, 3])
    said, ends = vocabulary.spelled([whole[0], whole[1], whole[4]])
    assert said == "a\ufffdb" and ends == [1, 2, 5]


def test_whole_characters():
    vocabulary = Vocabulary(words(["<unk>", "<eos>", "1", "+", "é"]), "model")
    assert vocabulary.spelled([2, 3, 4]) == ("1+é", [1, 2, 4])


def test_text_that_a_tokenizer_changes_is_followed_up_to_there():
    from tokenizers import normalizers

    tokenizer = other_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    vocabulary = Vocabulary(tokenizer, "teacher")
    ids = vocabulary.encode("so Far")
    assert len(vocabulary.ends_of(ids, "so Far")) < len(ids) and vocabulary.ends_of(ids, "so Far")[-1] <= 3


def test_tokenizers_that_lose_text_are_refused():
    from tokenizers import decoders

    tokenizer = other_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(
        ConfigError, match="teacher_tokenizer_name_or_path: .*WordPiece doesn't keep text as it is.*use_ext"
    ):
        _ = Vocabulary(tokenizer, "teacher_tokenizer_name_or_path").pieces


def test_without_an_end():
    tokenizer = other_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="teacher: the tokenizer has no eos_token"):
        _ = Vocabulary(tokenizer, "teacher").end


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_begin_with_a_text(kind):
    vocabulary = Vocabulary(KINDS[kind](), "model")
    for text in ("t", "th", "the", " the", "q", "zzzz"):
        ids = vocabulary.encode(text)
        spelled = b"".join(vocabulary.pieces[token] for token in ids)
        start, stop = vocabulary.span(ids)
        found = {token for token in vocabulary.pieces if start <= int(vocabulary.ranks[token]) < stop}
        ordinary = vocabulary.pieces.keys() - vocabulary.special
        assert found == {token for token in ordinary if vocabulary.pieces[token].startswith(spelled)}, text
    start, stop = vocabulary.span([vocabulary.end])
    assert [token for token in vocabulary.pieces if start <= int(vocabulary.ranks[token]) < stop] == [vocabulary.end]


def test_the_last_byte_of_all():
    vocabulary = Vocabulary(chat_tokenizer(vocab_size=300), "model")
    last = next(token for token, piece in vocabulary.pieces.items() if piece == b"\xff")
    start, stop = vocabulary.span([last])
    assert int(vocabulary.ranks[last]) == start == stop - 1


# ---------------------------------------------------------------- two


def test_groups_by_hand():
    """`ab|c|def` and `a|bc|d|ef`: ends 2 3 6 and 1 3 4 6."""
    assert groups_of([2, 3, 6], [1, 3, 4, 6]) == [(2, 2), (1, 2)]
    assert groups_of([1, 2], [1, 2]) == [(1, 1), (1, 1)]
    assert groups_of([1, 5], [1, 4]) == [(1, 1)]
    assert groups_of([], [3]) == groups_of([3], []) == []


@pytest.mark.parametrize("ours", KINDS)
@pytest.mark.parametrize("theirs", KINDS)
def test_groups_spell_the_same(ours, theirs):
    met = Meeting(Vocabulary(KINDS[ours](), "model"), Vocabulary(KINDS[theirs](), "teacher"))
    noise = random.Random(0)
    for _ in range(30):
        text = "".join(noise.choice("the quick apples 12+3.\n") for _ in range(noise.randint(1, 40)))
        row = {"completion_ids": met.ours.encode(text)}
        row["sampled"] = [True] * len(row["completion_ids"])
        found = as_teacher_reads(row, met, GOLDConfig(), chat=False)
        assert sum(a for a, _ in found["units"]) == len(row["completion_ids"])
        assert sum(b for _, b in found["units"]) == sum(found["teacher_sampled"])
        first, second = iter(row["completion_ids"]), iter(found["teacher_completion_ids"])
        for a, b in found["units"]:
            spelled = b"".join(met.ours.pieces[next(first)] for _ in range(a))
            if b:
                other = b"".join(met.theirs.pieces[next(second)] for _ in range(b))
                assert spelled.strip(b" ") == other.strip(b" ")  # SentencePiece's own blank
        assert all(b for _, b in found["units"])  # nothing is left over


@pytest.fixture
def met():
    return Meeting(
        Vocabulary(tiny_tokenizer(), "model"), Vocabulary(other_tokenizer(eos_token="</s>", template=None), "teacher")
    )


def read(met, ids, sampled=None, **fields):
    chat = fields.pop("chat", False)
    said = fields.pop("said", None)
    row = {"completion_ids": ids, "sampled": sampled or [True] * len(ids)}
    return as_teacher_reads(row, met, GOLDConfig(**fields), chat, said)


def test_an_end_belongs_to_an_end(met):
    ids = met.ours.encode("many apples")
    found = read(met, [*ids, met.ours.end])
    assert found["teacher_completion_ids"][-1] == met.theirs.end and found["units"][-1] == [1, 1]
    assert found["teacher_sampled"][-1]
    cut = read(met, ids)
    assert met.theirs.end not in cut["teacher_completion_ids"]
    skipped = read(met, [*ids, met.ours.end], uld_skip_student_eos=True, uld_skip_teacher_eos=True)
    assert skipped["units"][-1] == [1, 0] and not skipped["teacher_sampled"][-1]
    assert skipped["teacher_completion_ids"] == found["teacher_completion_ids"]


def test_what_a_template_puts_after_the_end(met):
    """A line break, say: a target of the student's that the teacher says nothing of."""
    line = met.ours.encode("\n")
    found = read(met, [*met.ours.encode("many"), met.ours.end, *line])
    assert found["units"][-2:] == [[1, 1], [1, 0]] and found["teacher_completion_ids"][-1] == met.theirs.end


def test_a_mark_that_is_no_end(met):
    """The student goes on as the user: the teacher is asked up to there, and isn't said to have ended."""
    mark = met.ours.tokenizer.convert_tokens_to_ids("<|user|>")
    text = met.ours.encode("many apples")
    found = read(met, [*text, mark, *text, met.ours.end])
    assert found["teacher_completion_ids"] == met.theirs.encode("many apples")
    assert found["units"][-1 - len(text) - 1 :] == [[1, 0]] * (len(text) + 2)


def test_tokens_that_are_not_trained_on(met):
    """A unit with one of them is left out as a whole, and so are the teacher's tokens of it."""
    ids = met.ours.encode("brown and small")
    whole = read(met, ids)
    place = next(index for index, (a, _) in enumerate(whole["units"]) if a > 1)
    a, b = whole["units"][place]
    before, other = (sum(unit[side] for unit in whole["units"][:place]) for side in (0, 1))
    sampled = [True] * len(ids)
    sampled[before] = False
    found = read(met, ids, sampled)
    assert found["units"] == whole["units"][:place] + [[1, 0]] * (a - 1) + whole["units"][place + 1 :]
    mask = whole["teacher_sampled"]
    assert found["teacher_sampled"] == mask[:other] + [False] * b + mask[other + b :]


def test_runs_that_never_meet_are_left_out():
    """A teacher of one token for a very long word: compared at once it would be held at once."""
    word = "x" * (LONGEST + 1)
    teacher = Vocabulary(words(["<unk>", "<eos>", "x"]), "teacher")
    long = Meeting(Vocabulary(other_tokenizer(), "model"), teacher)
    found = read(long, long.ours.encode(word))
    assert all(b == 1 for _, b in found["units"])  # letter by letter
    units = groups_of([len(word)], list(range(1, len(word) + 1)))
    assert units == [(1, LONGEST + 1)]


def test_what_the_teacher_says(met):
    said = met.theirs.encode("42 apples, step by step")
    ours = met.ours.encode("42 apples, step by step")
    found = read(met, [*ours, met.ours.end], said=said)
    assert found["teacher_completion_ids"] == [*said, met.theirs.end] and all(b for _, b in found["units"])


@pytest.mark.parametrize("skip", [False, True])
def test_by_position(met, skip):
    """The k-th token with the k-th, an end like any other: as in the paper of ULD, and in TRL."""
    ids = [*met.ours.encode("step by step"), met.ours.end]
    ends = {"uld_skip_student_eos": skip, "uld_skip_teacher_eos": skip}
    for said in (None, met.theirs.encode("step"), met.theirs.encode("step by step by step by step")):
        found = read(met, ids, said=said, use_extended_uld=False, **ends)
        theirs = len(found["teacher_completion_ids"]) - skip
        count = min(len(ids) - skip, theirs)
        assert found["units"] == [[1, 1]] * count + [[1, 0]] * (len(ids) - count)
        assert found["teacher_sampled"] == [True] * count + [False] * (theirs + skip - count)


def test_by_position_a_completion_that_was_cut_short_has_no_end(met):
    found = read(met, met.ours.encode("step by step"), use_extended_uld=False)
    assert not {met.theirs.end, met.theirs.turn_end} & {*found["teacher_completion_ids"]}
    assert all(found["teacher_sampled"][: sum(b for _, b in found["units"])])


# ---------------------------------------------------------------- which tokens are the same


def test_tokens_that_both_have(met):
    mine, others = (each.tolist() for each in met.shared)
    assert len(mine) == len(set(mine)) == len(set(others)) == len(others) and others == sorted(others)
    pairs = dict(zip(mine, others, strict=True))
    assert pairs[met.ours.end] == met.theirs.end  # <|end|> and </s>
    for ours, theirs in pairs.items():
        if ours != met.ours.end:
            assert met.ours.pieces[ours] == met.theirs.pieces[theirs]
    spelled = {met.theirs.pieces[token] for token in met.theirs.pieces if token not in met.theirs.special}
    missing = [
        t for t in met.ours.pieces if t not in pairs and t not in met.ours.special and met.ours.pieces[t] in spelled
    ]
    assert not missing


def test_a_blank_is_a_blank():
    """Whatever a family calls it: Ġ or ▁. By name, as TRL does, hardly any word would be shared."""
    met = Meeting(Vocabulary(chat_tokenizer(vocab_size=300), "model"), Vocabulary(sentencepiece(), "teacher"))
    pairs = dict(zip(*(each.tolist() for each in met.shared), strict=True))
    the = met.ours.encode(" the")
    assert len(the) == 1 and met.theirs.tokenizer.convert_ids_to_tokens(pairs[the[0]]) == "\u2581the"
    letter = met.theirs.tokenizer.convert_ids_to_tokens(pairs[met.ours.encode("h")[0]])
    assert letter == "h"  # not <0x68>


def test_nothing_in_common():
    met = Meeting(
        Vocabulary(words(["<unk>", "<eos>", "1"]), "model"), Vocabulary(words(["<unk>", "<eos>", "a"]), "teacher")
    )
    with pytest.raises(ConfigError, match="teacher: its tokenizer has no token that the student has"):
        _ = met.shared


# ---------------------------------------------------------------- the same ones


def test_the_same_tokens(relative, llama, teacher):
    ours = tiny_tokenizer()
    assert meeting(ours, GOLDConfig(teacher_model_name_or_path=str(relative))) is None
    assert meeting(ours, GOLDConfig(teacher_model_name_or_path=str(relative), use_uld_loss=True)) is not None
    assert meeting(ours, GOLDConfig(teacher_model_name_or_path=str(teacher))) is not None
    named = GOLDConfig(teacher_model_name_or_path=str(teacher), teacher_tokenizer_name_or_path=str(relative))
    assert meeting(ours, named) is None
    with pytest.raises(
        ConfigError, match="uld_crossentropy_weight: has no effect on a teacher with the student's tokens"
    ):
        meeting(ours, GOLDConfig(teacher_model_name_or_path=str(relative), uld_crossentropy_weight=1.0))


def test_a_tokenizer_that_is_missing(tmp_path, llama):
    bare = save_tiny(tmp_path / "bare", tiny_llama())
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="teacher_model_name_or_path: .*bare"):
        meeting(tiny_tokenizer(), GOLDConfig(teacher_model_name_or_path=str(bare)))

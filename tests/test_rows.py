"""Rows as a person sees them who scrolls through the data: each kind of fault is named, and healthy rows of many tasks
raise nothing. The columns come from here, so that every sentence of a finding can be compared with its rows."""

from __future__ import annotations

import itertools
import json
import random
import time

import pytest
from ft_grpo.config import GRPOConfig
from ft_sft.config import SFTConfig

from ft_host.diagnostics.rules import RULES
from ft_host.monitor.rows import row_facts
from ft_host.testing.rules import Told, findings
from ft_host.testing.tokenizers import chat_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATA = [rule for rule in RULES if rule.code.startswith("DATA") and rule.stage == "before"]
FIELDS = {"model": "m", "dataset": "d"}
NAMES = "Ann Bob Carl Dana Eve Finn Gus Hana Ivan Jill Kim Lars".split()
THINGS = "apples pears stones books letters candles baskets boxes pencils flowers tickets spoons".split()
PLACES = "garden market harbour library kitchen station forest theatre village castle office school".split()
COLOURS = "red blue green black white pink grey gold".split()


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer(CHATML, eos_token="<|im_end|>")


def found(rows, tokenizer, kind=SFTConfig, columns=(), held_out=None, **fields):
    """What the rules on data find in rows, by fingerprint, and the facts."""
    given = FIELDS | ({"reward": ["r"]} if kind is GRPOConfig else {}) | fields
    here, apart = ([(f"row {at}", row) for at, row in enumerate(each)] for each in (rows, held_out or []))
    facts = row_facts(here, tokenizer, kind(**given), columns, None if held_out is None else apart)
    return {each.fingerprint: each for each in findings(DATA, Told(config=given, facts=facts), kind)}, facts


def problems():
    """Short problems with worked answers, as of a school book: prompt, completion and answer."""
    rng = random.Random(3)
    out = []
    for _ in range(192):
        who, what, where, a, b = (
            rng.choice(NAMES),
            rng.choice(THINGS),
            rng.choice(PLACES),
            rng.randint(2, 90),
            rng.randint(2, 90),
        )
        other = rng.choice([name for name in NAMES if name != who])
        prompt = f"{who} brings {a} {what} to the {where}, and {other} brings {b} more. How many {what} are there?"
        ways = (
            f"{who} has {a} {what}. {other} adds {b}, so that the {where} has {a} + {b} = {a + b}.\n#### {a + b}",
            f"In the {where} we count {a} and then {b} {what}, which makes {a + b} together.\n#### {a + b}",
        )
        out.append({"prompt": prompt, "completion": rng.choice(ways), "answer": str(a + b)})
    return out


ROWS = problems()
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["completion"][:-2] + "x. #### 1",
     "answer": row["answer"]}
    for row in ROWS
]  # fmt: skip
JUDGED = [
    {"prompt": row["prompt"], "completion": row["chosen"] if at % 2 else row["rejected"], "label": bool(at % 2),
     "answer": row["answer"]}
    for at, row in enumerate(PAIRS)
]  # fmt: skip
PROMPTS = [{"prompt": row["prompt"], "answer": row["answer"]} for row in ROWS]
CHATS = [
    {"messages": [{"role": "system", "content": "You solve problems."}, {"role": "user", "content": row["prompt"]},
                  {"role": "assistant", "content": row["completion"]}]}
    for row in ROWS
]  # fmt: skip


def third(rows, **columns):
    """Every third row with other columns: values, or functions of the row."""
    return [changed(row, columns) if at % 3 == 0 else row for at, row in enumerate(rows)]


def all_of(rows, **columns):
    return [changed(row, columns) for row in rows]


def changed(row, columns):
    return row | {name: value(row) if callable(value) else value for name, value in columns.items()}


def said(rows, role, text):
    """Conversations in which every third message of a role is another text."""
    return [
        {"messages": [m | {"content": text} if m["role"] == role and at % 3 == 0 else m for m in row["messages"]]}
        for at, row in enumerate(rows)
    ]


def misread(text):
    return text.replace(" to ", " à ").encode().decode("cp1252", "replace")


# By kind: the rows, the method's config, the finding, its severity, and what its message must say.
FAULTS = {
    "blank prompts": (third(ROWS, prompt=""), SFTConfig, "DATA016:prompt", "warning", "33 %"),
    "blank prompts of rollouts": (third(PROMPTS, prompt=" \n"), GRPOConfig, "DATA016:prompt", "warning", "33 %"),
    "a blank question in conversations": (said(CHATS, "user", ""), SFTConfig, "DATA016:prompt", None, ""),
    "a blank answer in conversations": (said(CHATS, "assistant", " "), SFTConfig, "DATA016:completion", "warning", ""),
    "blank chosen": (third(PAIRS, chosen="  "), SFTConfig, "DATA016:chosen", "warning", "nothing is preferred"),
    "an end token as rejected": (third(PAIRS, rejected="<|im_end|>"), SFTConfig, "DATA016:rejected", "warning", ""),
    "blank judged completions": (third(JUDGED, completion=""), SFTConfig, "DATA016:completion", "warning", ""),
    "blank answers": (third(PROMPTS, answer=""), GRPOConfig, "DATA016:answer", "warning", "33 %"),
    "absent answers": (third(PROMPTS, answer=None), GRPOConfig, "DATA016:answer", "warning", "nothing"),
    "thoughts alone": (
        third(ROWS, completion=lambda row: f"<think>{row['completion']}</think>"),
        SFTConfig, "DATA017", "warning", "33 %",
    ),
    "thoughts without an end": (
        third(ROWS, completion=lambda row: f"<think>\n{row['completion']}"), SFTConfig, "DATA017", "warning", "33 %",
    ),
    "thoughts in a field, and no content": (
        [{"messages": [*row["messages"][:2], {"role": "assistant", "content": "", "reasoning_content": "so"}]}
         for row in CHATS],
        SFTConfig, "DATA017", "warning", "100 %",
    ),
    "the prompt within the completion": (
        all_of(ROWS, completion=lambda row: f"{row['prompt']} {row['completion']}"),
        SFTConfig, "DATA018:completion", "warning", "100 %",
    ),
    "chosen is the prompt": (
        third(PAIRS, chosen=lambda row: row["prompt"]), SFTConfig, "DATA018:chosen", "warning", "33 %",
    ),
    "the answer column is the prompt": (
        all_of(PROMPTS, answer=lambda row: row["prompt"]), GRPOConfig, "DATA018:answer", "warning", "100 %",
    ),
    "an answer behind a word for it": (
        all_of(PROMPTS, prompt=lambda row: f"{row['prompt']}\n(Answer: {row['answer']})"),
        GRPOConfig, "DATA019:answer", "warning", "100 %",
    ),
    "a hint with the answer first": (
        third(PROMPTS, prompt=lambda row: f"Hint: {row['answer']}\n{row['prompt']}"),
        GRPOConfig, "DATA019:answer", "warning", "33 %",
    ),
    "the answer at the end of the prompt": (
        third(PROMPTS, prompt=lambda row: f"{row['prompt']} {row['answer']}"),
        GRPOConfig, "DATA019:answer", "warning", "33 %",
    ),
    "the completion at the end of the prompt": (
        all_of(ROWS, prompt=lambda row: f"{row['prompt']}\n{row['completion']}"),
        SFTConfig, "DATA019:completion", "warning", "100 %",
    ),
    "prompt and completion exchanged": (
        all_of(ROWS, prompt=lambda row: row["completion"], completion=lambda row: row["prompt"]),
        SFTConfig, "DATA020", "warning", "prompts hold final answers",
    ),
    "sums and results exchanged": (
        [{"prompt": f"{n + 7}", "completion": f"{n}+7="} for n in range(64)],
        SFTConfig, "DATA020", "warning", "end in what asks for an answer",
    ),
    "texts and labels exchanged": (
        [{"prompt": ("good", "bad")[n % 2], "completion": f"It is the {n}th film of this kind."} for n in range(64)],
        SFTConfig, "DATA020", "info", "2 short prompts",
    ),
    "roles exchanged": (
        [{"messages": [{"role": "assistant", "content": row["prompt"]}, {"role": "user", "content": row["completion"]}]}
         for row in ROWS],
        SFTConfig, "DATA020", "warning", "begin with the assistant",
    ),
    "chosen and rejected exchanged": (
        all_of(PAIRS, chosen=lambda row: row["rejected"], rejected=lambda row: row["chosen"]),
        SFTConfig, "DATA021:rejected", "warning", "the row's answer contradicts which completion is chosen",
    ),
    "chosen by a coin toss": (
        [changed(row, {"chosen": row["rejected"], "rejected": row["chosen"]}) if at % 2 else row
         for at, row in enumerate(PAIRS)],
        SFTConfig, "DATA021:rejected", "warning", "coin toss",
    ),
    "scores the other way round": (
        all_of(PAIRS, answer="", score_chosen=1.0, score_rejected=8.5),
        SFTConfig, "DATA021:rejected", "warning", "scores",
    ),
    "margins below 0": (
        third(all_of(PAIRS, answer="", margin=0.5), margin=-0.5),
        SFTConfig, "DATA021:rejected", "warning", "a margin below 0",
    ),
    "labels turned": (
        all_of(JUDGED, label=lambda row: not row["label"]), SFTConfig, "DATA021:label", "warning", "exchanged",
    ),
    "one completion for all": (
        all_of(ROWS, completion="I'm sorry, but I can't help."), SFTConfig, "DATA023:completion", "warning", "all rows",
    ),
    "a refusal in a third": (
        third(ROWS, completion="The request could not be processed. Please try again later."),
        SFTConfig, "DATA023:completion", "warning", "33 %",
    ),
    "one answer for all": (all_of(PROMPTS, answer="0"), GRPOConfig, "DATA023:answer", "warning", "all rows"),
    "nan as completion": (third(ROWS, completion="nan"), SFTConfig, "DATA024:completion", "warning", "33 %"),
    "None as answer": (third(PROMPTS, answer="None"), GRPOConfig, "DATA024:answer", None, "33 %"),
    "characters of another encoding": (
        all_of(ROWS, completion=lambda row: misread(f"{row['completion']} Voilà, le résultat.")),
        SFTConfig, "DATA025:misread", "warning", "read as another encoding",
    ),
    "characters that are lost": (
        third(ROWS, completion=lambda row: row["completion"].replace("a", "\ufffd")),
        SFTConfig, "DATA025:replaced", "warning", "33 %",
    ),
    "marks within messages": (
        [{"messages": [m | {"content": f"<|im_start|>{m['content']}<|im_end|>"} for m in row["messages"]]}
         for row in CHATS],
        SFTConfig, "DATA026:marks", "warning", "<|im_start|>",
    ),
    "marks of another template": (
        all_of(ROWS, prompt=lambda row: f"[INST] {row['prompt']} [/INST]"),
        SFTConfig, "DATA026:foreign_marks", "warning", "[INST]",
    ),
    "slots that weren't filled": (
        all_of(ROWS, prompt="Solve this: {question}"), SFTConfig, "DATA026:slots", "warning", "{question}",
    ),
    "further turns within a completion": (
        all_of(ROWS, completion=lambda row: f"{row['completion']}\n\nUser: and now?\nAssistant: yes"),
        SFTConfig, "DATA026:turns", "warning", "User:",
    ),
    "HTML": (
        all_of(ROWS, completion=lambda row: row["completion"].replace("\n", "<br>")),
        SFTConfig, "DATA026:html", "info", "<br>",
    ),
    "cut at a number of characters": (
        all_of(ROWS, completion=lambda row: row["completion"][:50]), SFTConfig, "DATA027:completion", "warning", "50",
    ),
    "another script in a fifth": (
        [changed(row, {"completion": f"Всего {row['answer']} штук, это верный ответ"}) if at % 5 == 0 else row
         for at, row in enumerate(ROWS)],
        SFTConfig, "DATA028:completion", "info", "Latin",
    ),
    "loops": (
        third(ROWS, completion=lambda row: f"{row['answer']} is the sum, " * 30),
        SFTConfig, "DATA030:completion", None, "33 %",
    ),
    "a third ends in mid-word": (
        third(ROWS, completion=lambda row: row["completion"][: row["completion"].index(" so that the ") + 15]
              if " so that the " in row["completion"] else row["completion"]),
        SFTConfig, "DATA034:completion", "info", "",
    ),
    "the user has the last word": (
        [{"messages": [*row["messages"], {"role": "user", "content": "Thanks!"}]} for row in CHATS],
        SFTConfig, "DATA035", "warning", "100 %",
    ),
    "completions of other prompts": (
        [row | {"completion": other["completion"]} for row, other in zip(ROWS, ROWS[41:] + ROWS[:41], strict=True)],
        SFTConfig, "DATA036:completion", "warning", "other prompts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_kind_of_fault_is_named(name, tokenizer):
    rows, kind, expected, severity, words = FAULTS[name]
    told, facts = found(rows, tokenizer, kind)
    json.dumps(facts, allow_nan=False)  # run.json holds them
    assert expected in told, f"found {sorted(told)}"
    assert severity in (None, told[expected].severity)
    assert words in told[expected].message and told[expected].remedies
    assert told[expected].state == "open"


def healthy():
    """Rows of many tasks, each with what often looks like a fault and is none."""
    rng = random.Random(4)

    def words(count):
        return " ".join(rng.choice(THINGS + PLACES) for _ in range(count))

    def of(make, count=96):
        return [make() for _ in range(count)]

    def letters(least=3, most=9):
        return "".join(rng.choice("abcdef") for _ in range(rng.randint(least, most)))

    def look_up():
        people, keys = rng.sample(NAMES, 4), [rng.choice(COLOURS) for _ in range(4)]
        at = rng.randrange(4)
        known = " ".join(f"{one} has the {key} key." for one, key in zip(people, keys, strict=True))
        return {"prompt": f"{known} Which key has {people[at]}?", "completion": keys[at], "answer": keys[at]}

    def chosen_of(count):
        options = rng.sample(PLACES, count)
        return {"prompt": f"Where are the {words(3)}? Options: {', '.join(options)}", "completion": rng.choice(options)}

    def few_shots(end):
        shown = "".join(f"Text: {words(4)}\nLabel: {rng.choice(('good', 'bad'))}\n\n" for _ in range(3))
        return {"prompt": f"{shown}Text: {words(4)}{end}", "completion": f" {rng.choice(('good', 'bad'))}"}

    def talk(*contents):
        roles = itertools.cycle(("user", "assistant"))
        return {
            "messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        }

    def reversed_letters():
        text = letters()
        return {"prompt": f"{text}=", "completion": text[::-1]}

    def repeated(begin):
        text = words(6)
        return {"prompt": f"{begin}{text}", "completion": text}

    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    return {
        "problems": ROWS,
        "conversations": CHATS,
        "pairs": PAIRS,
        "judged": JUDGED,
        "yes or no": of(lambda: {"prompt": f"{words(8)}? Answer yes or no", "completion": rng.choice(("yes", "no"))}),
        "mostly no": of(lambda: {"prompt": f"Is {words(8)} so?", "completion": "no" if rng.random() < 0.95 else "yes"}),
        "a label named none": of(lambda: {"prompt": words(9), "completion": rng.choice(("person", "place", "none "))}),
        "one of four": of(lambda: chosen_of(4)),
        "one of two": of(lambda: chosen_of(2)),
        "few shots": of(lambda: few_shots("\nLabel:")),
        "few shots without a cue": of(lambda: few_shots("")),
        "letters reversed": of(reversed_letters),
        "letters twice": of(lambda: (lambda text: {"prompt": f"{text}>", "completion": text + text})(letters())),
        "sixteen letters sorted": of(
            lambda: (lambda text: {"prompt": f"{text} =>", "completion": " ".join(sorted(text))})(letters(16, 16))
        ),
        "a text repeated": of(lambda: repeated("Repeat: ")),
        "the prompt repeated": of(lambda: repeated("")),
        "look-up": of(look_up),
        "look-up, with the query last": of(
            lambda: {"prompt": f"{words(4)}: {rng.choice(COLOURS)} ? {rng.choice(NAMES)}", "completion": words(1)}
        ),
        "a translation": of(lambda: {"prompt": words(8), "completion": " ".join(w[::-1] for w in words(8).split())}),
        "another script in all": of(
            lambda: {"prompt": words(8), "completion": f"Это перевод номер {rng.randint(1, 999)} на русский язык"}
        ),
        "code": of(
            lambda: {
                "prompt": f"Write a function that counts {words(1)} in the {words(1)}.",
                "completion": f'```python\ndef count_{letters()}(x):\n    return f"{{x}} of {{name}}"\n```',
            }
        ),
        "pages in code": of(
            lambda: {"prompt": f"A page on {words(2)}.", "completion": f"```html\n<p>{words(3)}</p>\n```"}
        ),
        "thoughts and answers": of(lambda: talk(f"{words(3)}?", f"<think>\nLook: {words(4)}\n</think>\n\n{words(2)}.")),
        "no thoughts": of(lambda: talk(f"{words(3)}?", f"<think>\n\n</think>\n\n{words(2)}.")),
        "three turns": of(lambda: talk(f"{words(3)}?", words(5), f"And {words(2)}?", words(5))),
        "calls without a word": of(
            lambda: {
                "messages": [
                    {"role": "user", "content": f"{words(2)}?"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "7"},
                    {"role": "assistant", "content": f"There are 7 {words(1)}."},
                ]
            }
        ),
        "a form asked for": of(lambda: {"prompt": f"{words(5)}? End with Answer: and a word.", "completion": words(1)}),
        "texts": of(lambda: {"text": f"{words(rng.randint(20, 40))}."}),
        "tokens": of(
            lambda: (lambda n: {"input_ids": [n, 6, n, 8], "labels": [-100, -100, n, 8]})(rng.randint(38, 90)), 20
        ),
    }


HEALTHY = healthy()


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_rows_raise_nothing(name, tokenizer):
    told, _ = found(HEALTHY[name], tokenizer)
    assert {each for each, finding in told.items() if finding.severity != "info"} == set()
    loud = {each for each in told if not each.startswith(("DATA018", "DATA024"))}  # an echo, and a label of this name
    assert loud == set()


def test_prompts_with_answers_raise_nothing_and_neither_do_two_rewards_of_half_the_rows_each(tokenizer):
    assert found(PROMPTS, tokenizer, GRPOConfig)[0] == {}
    halves = [row | ({"answer": None} if at % 2 else {}) for at, row in enumerate(PROMPTS)]
    (finding,) = found(halves, tokenizer, GRPOConfig, reward=["one", "two"])[0].values()
    assert finding.severity == "info"


def test_labels_that_are_about_another_thing_than_the_answer_are_not_contradicted_by_it(tokenizer):
    rows = [row | {"completion": PAIRS[at]["chosen"], "label": at % 2 == 0} for at, row in enumerate(JUDGED)]
    assert not any(name.startswith("DATA021") for name in found(rows, tokenizer)[0])


def letters(seed):
    """Letters to write backwards in capitals: nothing but their signs tells what belongs together."""
    rng = random.Random(seed)
    texts = ["".join(rng.sample("abcdefghijklmnopqrstuvwxyz", rng.randint(4, 8))) for _ in range(96)]
    return [{"prompt": f"<{text}\n", "completion": text[::-1].upper(), "answer": text[::-1].upper()} for text in texts]


def moved(rows, name):
    return [row | {name: other[name]} for row, other in zip(rows, [*rows[7:], *rows[:7]], strict=True)]


@pytest.mark.parametrize("name, kind", [("completion", SFTConfig), ("answer", GRPOConfig)])
def test_what_belongs_to_other_prompts_shows_beside_held_out_rows(name, kind, tokenizer):
    rows, apart = letters(1), letters(2)
    assert found(rows, tokenizer, kind, held_out=apart)[0] == {}
    assert found(moved(rows, name), tokenizer, kind)[0] == {}  # nobody could tell
    told, facts = found(moved(rows, name), tokenizer, kind, held_out=apart)
    assert set(told) == {f"DATA036:{name}"} and told[f"DATA036:{name}"].severity == "warning"
    assert facts[f"data/misjoined/{name}"] < 0.25


def test_answers_that_are_of_other_rows_show_where_prompts_say_nothing_of_them(tokenizer):
    def sums(seed):
        rng = random.Random(seed)
        pairs = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(64)]
        return [{"prompt": f"{a}+{b}=", "completion": f"{a + b}", "answer": f"{a + b}"} for a, b in pairs]

    assert found(sums(1), tokenizer, held_out=sums(2))[0] == {}
    told, facts = found(moved(sums(1), "completion"), tokenizer, held_out=sums(2))
    assert set(told) == {"DATA036:completion"}
    assert (
        "of the completions end with the row's answer, and 100 % of the held-out ones"
        in told["DATA036:completion"].message
        or "signs" in facts["data/misjoined_by/completion"]
    )


def test_exchanged_columns_are_exchanged_back_where_held_out_rows_are_so_too(tokenizer):
    turned = all_of(ROWS, prompt=lambda row: row["completion"], completion=lambda row: row["prompt"])
    both = {"prompt": "completion", "completion": "prompt"}
    told, _ = found(turned, tokenizer, held_out=turned)
    assert told["DATA020"].remedies[0].patch == {"dataset_columns": both}
    told, _ = found(turned, tokenizer, held_out=turned, dataset_columns={"q": "prompt", "a": "completion"})
    assert told["DATA020"].remedies[0].patch == {"dataset_columns": {"q": "completion", "a": "prompt"}}
    told, _ = found(turned, tokenizer, held_out=ROWS)  # a patch would exchange those as well
    assert told["DATA020"].remedies[0].patch == {}
    pairs = all_of(PAIRS, chosen=lambda row: row["rejected"], rejected=lambda row: row["chosen"])
    told, _ = found(pairs, tokenizer)
    assert told["DATA021:rejected"].remedies[0].patch == {
        "dataset_columns": {"chosen": "rejected", "rejected": "chosen"}
    }


def test_columns_that_a_reward_reads_are_looked_at_and_others_are_not(tokenizer):
    rows = third(all_of(PROMPTS, tests="assert f(1) == 2"), tests="", note="")
    assert set(found(rows, tokenizer, GRPOConfig)[0]) == set()
    assert set(found(rows, tokenizer, GRPOConfig, columns=("tests",))[0]) == {"DATA016:tests"}


def test_names_of_renamed_columns_tell_of_an_exchange(tokenizer):
    told, _ = found(ROWS, tokenizer, dataset_columns={"question": "completion", "solution": "prompt"})
    assert told["DATA020"].severity == "warning" and "question the completion" in told["DATA020"].message


def test_the_order_of_kinds_matters_where_it_is_kept(tokenizer):
    rows = sorted(JUDGED, key=lambda row: row["label"])
    assert found(rows, tokenizer)[0] == {}
    told, facts = found(rows, tokenizer, train_sampling_strategy="sequential")
    assert facts["data/sorted/label"] > 0.9
    assert told["DATA029:label"].remedies[0].patch == {"train_sampling_strategy": "random"}
    assert found(JUDGED, tokenizer, train_sampling_strategy="sequential")[0] == {}


def test_facts_quote_a_row_with_its_place(tokenizer):
    _, facts = found(third(ROWS, completion="<think>so"), tokenizer)
    assert facts["data/only_thoughts"] == 1 / 3 and facts["data/said/only_thoughts"] == "row 0"
    _, facts = found(third(PROMPTS, answer=""), tokenizer, GRPOConfig)
    assert facts["data/blank/answer"] == 1 / 3 and facts["data/said/blank/answer"] == "'' (row 0)"


def test_looking_costs_little(tokenizer):
    rows = [row | {"completion": row["completion"] * 20} for row in ROWS]
    began = time.process_time()
    found(rows[:256], tokenizer)
    assert time.process_time() - began < 5  # usually half a second: a machine may be slow, not ten times so


def test_answers_that_completions_have_no_room_for(tokenizer):
    rows = [row | {"completion": row["completion"]} for row in ROWS]
    told, facts = found(rows, tokenizer, GRPOConfig, max_completion_length=16)
    assert facts["data/longer_than_room/completion"] == 1 and told["DATA038:completion"].severity == "warning"
    (remedy,) = told["DATA038:completion"].remedies
    room = remedy.patch["max_completion_length"]
    assert room % 64 == 0 and facts["data/room_for/completion"] < room
    assert found(rows, tokenizer, GRPOConfig, max_completion_length=room)[0] == {}


def test_empty_completions_are_told_as_that_and_contradict_no_label(tokenizer):
    """Of bad completions some have the right answer, and miss something else that was asked for."""
    rows = [
        row | ({} if row["label"] or at % 5 > 2 else {"completion": PAIRS[at]["chosen"]})
        for at, row in enumerate(JUDGED)
    ]
    told = found(third(rows, completion=""), tokenizer)[0]
    assert "DATA016:completion" in told and not any(name.startswith("DATA021") for name in told)


def test_pairs_the_wrong_way_round_are_no_columns_of_other_prompts(tokenizer):
    def turned(rows):
        return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]

    told = found(turned(PAIRS), tokenizer, held_out=PAIRS)[0]
    assert "DATA021:rejected" in told
    assert not any(name.startswith("DATA036") and each.state == "open" for name, each in told.items())

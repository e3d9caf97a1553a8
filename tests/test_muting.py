"""What mutes what, of the host's rules and of those of the packages in this repository.

A rule names what follows from it (`mutes`), or its cause (`follows_from`): a method's rules name causes among the
host's, which knows no method. Which of the two says it makes no difference. The order of levels (`order.LEVELS`) says
which way it can go. That no advice is contrary is in test_order.py.
"""

from __future__ import annotations

from pathlib import Path

from ft_host.diagnostics.collect import installed_rules
from ft_host.diagnostics.order import LEVELS, PLACES
from ft_host.diagnostics.rule import follows
from ft_host.diagnostics.rules import RULES

# Cause: what it mutes at the least, as releases before the order of levels said it. OPT011 and OPT013, which the config
# alone shows, follow from no data; DPO001 was of margins that blow up.
RELATION = {
    "DATA001": "OPT001 OPT002 OPT003 OPT004 OPT005 OPT006 OPT007 OPT008 OPT009 OPT010 OPT012 OPT014",
    "DIS111": "OPT014",
    "DIS115": "OPT014",
    "DIS117": "OPT014",
    "DPO001": "OPT014",
    "DPO004": "DPO001 OPT009 OPT010 OPT014",
    "DPO007": "DPO003 OPT005 OPT014",
    "ENG001": "ENG002",
    "ASY007": "ASY001 ENG001 ENG002",
    "ASY011": "SYS001 SYS005",
    "ENG004": "ASY001 ENG001 ENG002",
    "GOLD111": "OPT014",
    "GOLD115": "OPT014",
    "GOLD117": "OPT014",
    "GRPO001": "GRPO003 GRPO013 OPT002 OPT005",
    "GRPO002": "GRPO001 GRPO003 GRPO013 OPT002 OPT005",
    "GRPO008": "GRPO012",
    "GRPO011": "OPT014",
    "GRPO015": "GRPO003 OPT014",
    "KTO001": "KTO002 KTO006 KTO007",
    "KTO005": "OPT014",
    "KTO007": "KTO006 OPT005 OPT014",
    "MOE002": "MOE001",
    "NUM001": "ALL",
    "OPT002": "OPT005",
    "OPT003": "DPO003 KTO006 OPT005 OPT006 OPT014",
    "OPT004": "OPT005 OPT006 OPT014",
    "OPT006": "DPO003 KTO006 OPT005 OPT014",
    "OPT007": "DPO003 KTO006 OPT005 OPT006 OPT014",
    "OPT008": "OPT005 OPT007",
    "OPT009": "OPT014",
    "PPO101": "OPT002 OPT005 PPO103 PPO113",
    "PPO111": "OPT014",
    "PPO115": "OPT014 PPO103",
    "PRB001": "DPO001 DPO002 DPO003 DPO004 DPO005 DPO007 KTO001 KTO002 KTO004 KTO005 KTO006 KTO007 PRB005",
    "PRB003": "ASY001 ENG001 ENG002",
    "PRB006": "OPT005",
    "RLOO001": "OPT002 OPT005 RLOO003 RLOO013",
    "RLOO002": "OPT002 OPT005 RLOO001 RLOO003 RLOO013",
    "RLOO008": "RLOO012",
    "RLOO011": "OPT014",
    "RLOO015": "OPT014 RLOO003",
    "RM004": "OPT009 RM001",
    "SDFT001": "SDFT002",
    "SDFT111": "OPT014",
    "SDFT115": "OPT014",
    "SDFT117": "OPT014",
    "SDPO001": "OPT002 OPT005 SDPO002 SDPO103",
    "SDPO108": "SDPO112",
    "SDPO111": "OPT014",
    "SDPO115": "OPT014 SDPO103",
}


def ours():
    plugins = Path(__file__).resolve().parent.parent / "plugins"
    names = {"ft-host", *(folder.name for folder in plugins.iterdir())}
    owned, problems = installed_rules()
    assert not problems
    return [rule for rule, label in owned if label.split()[0] in names]


def test_what_mutes_what():
    rules = ours()
    for cause in rules:
        muted = {rule.code for rule in rules if follows(rule, cause)}
        wanted = RELATION.get(cause.code, "")
        assert cause.mutes == ("ALL",) if wanted == "ALL" else muted >= set(wanted.split()), cause.code


def test_the_order_stands_in_the_docs():
    text = (Path(__file__).resolve().parent.parent / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    rows = [f"| `{level}` | {what} |" for level, what in LEVELS.items()]
    assert "\n".join(rows) in text


def test_each_rule_names_its_level():
    assert [rule.code for rule in ours() if rule.level not in LEVELS] == []


def test_a_cause_is_never_at_a_later_level_than_what_it_mutes():
    """Of what a rule names by its code; a prefix or a level stands for those of it that can follow."""
    rules = {rule.code: rule for rule in ours()}
    named = [(cause, rules[code]) for cause in rules.values() for code in cause.mutes if code in rules]
    named += [(rules[code], rule) for rule in rules.values() for code in rule.follows_from if code in rules]
    assert len(named) > 300
    wrong = [
        f"{cause.code} {cause.levels} -> {rule.code} {rule.levels}"
        for cause, rule in named
        if PLACES[cause.levels[0]] > PLACES[rule.levels[-1]] or not follows(rule, cause)
    ]
    assert not wrong


def test_two_rules_only_mute_each_other_where_their_verdicts_differ():
    """No pair at one level does: which of the two comes first is then a matter of what each says of the run."""
    rules = ours()
    both = [
        (one.code, other.code)
        for one in rules
        for other in rules
        if one.code < other.code and follows(one, other) and follows(other, one)
        if one.later is None and other.later is None
    ]
    assert both == []


def test_rules_that_methods_share_have_the_same_causes_and_consequences():
    rules = ours()

    def of(letters: str, base: int) -> dict[str, set[str]]:
        """By the number of the family, with those of the host by their codes."""
        own = {rule.code: str(int(rule.code[-3:]) - base) for rule in rules if rule.code.startswith(letters)}
        host = {rule.code: rule.code for rule in RULES}
        return {
            name: {(own | host)[rule.code] for rule in rules if rule.code in own | host and follows(rule, cause)}
            for cause in rules
            for name in [own.get(cause.code)]
            if name is not None
        }

    assert of("GRPO", 0) == of("RLOO", 0)
    ppo, grpo = of("PPO1", 100), of("GRPO", 0)
    shared = {
        name: {each for each in found if each in (*ppo, *(rule.code for rule in RULES))} for name, found in grpo.items()
    }
    assert {name: ppo[name] for name in ppo if name != "1"} == {name: shared[name] for name in ppo if name != "1"}


def test_the_host_mutes_rules_of_its_own_alone():
    own = {rule.code.rstrip("0123456789") for rule in RULES}
    named = {code.rstrip("0123456789") for rule in RULES for code in (*rule.mutes, *rule.follows_from)}
    assert named <= own | {"ALL", *LEVELS}

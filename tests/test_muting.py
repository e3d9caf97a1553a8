"""The whole relation of what mutes what, of the host's rules and of those of the packages in this repository.

A rule names what follows from it (`mutes`), or its cause (`follows_from`): a method's rules name causes among the
host's, which knows no method. Which of the two says it makes no difference.
"""

from __future__ import annotations

from pathlib import Path

from ft_host.diagnostics.collect import installed_rules
from ft_host.diagnostics.rule import follows
from ft_host.diagnostics.rules import RULES

# Cause: what it mutes. As in 0.4.0, where the host named DPO003 and KTO006 (of OPT003, OPT006 and OPT007) and all
# rules of DPO, KTO and SFT (of PRB001) itself. SFT001 alone is left out: a run of it has no reference. OPT014 and
# ASY are new.
RELATION = {
    "DATA001": "OPT001 OPT002 OPT003 OPT004 OPT005 OPT006 OPT007 OPT008 OPT009 OPT010 OPT011 OPT012 OPT013 OPT014",
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
    found = {}
    for cause in rules:
        if cause.mutes == ("ALL",):
            found[cause.code] = "ALL"
            continue
        muted = sorted(rule.code for rule in rules if follows(rule, cause))
        if muted:
            found[cause.code] = " ".join(muted)
    assert found == RELATION


def test_the_host_mutes_rules_of_its_own_alone():
    own = {rule.code.rstrip("0123456789") for rule in RULES}
    named = {code.rstrip("0123456789") for rule in RULES for code in (*rule.mutes, *rule.follows_from)}
    assert named <= own | {"ALL"}

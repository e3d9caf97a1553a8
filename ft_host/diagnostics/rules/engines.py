"""The sampler beside the trainer, of runs that learn from completions of their own. Imports no torch."""

from __future__ import annotations

from ft_host.diagnostics.rule import Remedy, Rule
from ft_host.diagnostics.view import View, percent, short

APART, ESS = "sampling/sampling_logp_difference/mean", "sampling/effective_sample_size"
PROBED, PROBED_AFTER = "probe/sampler_difference", "probe/sampler_difference_after_update"
WARN, ERROR = 0.1, 1.0  # nats a token, on average

BOUNDED = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # with what leaves all tokens as they are


def bounded(view: View) -> list[str]:
    """The fields by which this run samples from something else than the policy."""
    config = vars(view.config)
    return [name for name, usual in BOUNDED.items() if config.get(name, usual) != usual]


def from_all(view: View) -> list[Remedy]:
    names = bounded(view)
    if not names:
        return []
    said = ", ".join(f"{name} from {short(vars(view.config)[name])} to {short(BOUNDED[name])}" for name in names)
    return [Remedy(why=f"Set {said}", patch={name: BOUNDED[name] for name in names}, again=True)]


def mend_sampler(view: View) -> list[Remedy]:
    out = from_all(view)
    if not view.config.disable_dropout and view.facts.get("model/dropout", 0) > 0:
        why = "Set disable_dropout: the model samples without dropout, and is trained with it"
        out.append(Remedy(why=why, patch={"disable_dropout": True}, again=True))
    if view.config.backend != "transformers":
        out.append(
            Remedy(
                why="Sample with the built-in backend, transformers, whose log-probs are the trainer's",
                patch={"backend": "transformers", "backend_config": {}},
                again=True,
            )
        )
    out.append(Remedy(why="Give sampler and trainer the same precision, weights and chat template"))
    if vars(view.config).get("importance_sampling_correction") == "none":
        out.append(
            Remedy(
                why=(
                    "Set importance_sampling_correction to token_truncate, from none: weigh tokens by the ratio, up to"
                    " a limit"
                ),
                patch={"importance_sampling_correction": "token_truncate"},
            )
        )
    return out


def ahead(view: View) -> bool:
    """Whether completions may be of older weights than the policy that learns from them."""
    config = vars(view.config)
    return config.get("rollouts", "sync") != "sync" and config.get("max_staleness") != 0


def apart(view: View) -> bool:
    # A sampler that leaves tokens out is a distribution of its own: ENG003 says so. Where completions are of older
    # weights, the difference holds their age: ASY007 compares engines with the same weights.
    return not bounded(view) and not ahead(view) and moved(view[APART], view.get(f"start/{APART}"), 0.01)


def moved(now: float, before: float | None, least: float) -> bool:
    """Whether a difference is too large, or far above what there was: two float32 engines are 1e-7 apart."""
    return not now <= WARN or (before is not None and now > max(least, 100 * before))


RULES = [
    Rule(
        code="PRB002",
        title="The ratio isn't 1 before the first update",
        stage="probe",
        level="models",
        severity="error",
        needs=("start/clip_ratio/region_mean",),
        test=lambda view: view["start/clip_ratio/region_mean"] > 1e-3,
        message=lambda view: (
            f"Before any update {percent(view['start/clip_ratio/region_mean'])} of the ratios of new and old policy are"
            " out of their range; all of them should be 1: old log-probs and new ones are computed differently."
        ),
        remedies=lambda view: (
            []
            if view.config.disable_dropout
            else [Remedy(why="Set disable_dropout", patch={"disable_dropout": True}, again=True)]
        ),
        when="Any ratio is clipped in the first step of a run.",
        why="Dropout, or a forward pass that depends on how rows are batched: all ratios are off by as much.",
        remedy="Set disable_dropout.",
        source="TRL issues 4159 and 5815",
    ),
    Rule(
        code="PRB003",
        title="What samples isn't the model that is trained",
        stage="probe",
        level="models",
        needs=(PROBED,),
        test=lambda view: not view[PROBED] <= WARN,
        severe=lambda view: not view[PROBED] <= ERROR,
        message=lambda view: (
            f"Before training the log-probs of the backend {view.config.backend} differ from the policy's by"
            f" {short(view[PROBED])} nats a token on average"
            f" ({short(view.get('probe/sampler_difference_max', view[PROBED]))} at most): its weights, precision,"
            " temperature or chat template are others."
        ),
        remedies=mend_sampler,
        when="On a few prompts before training, the mean difference is above 0.1 nats a token; above 1: an error.",
        why="What is learnt from isn't what the policy would say: ratios and gradients are wrong from the first step.",
        remedy="The same weights, precision and template; importance_sampling_correction for what is left.",
        source="axolotl docs/training_stability; 2510.26788",
        mutes=("ENG001", "ENG002"),
    ),
    Rule(
        code="ENG004",
        title="The sampler doesn't get the new weights",
        stage="probe",
        level="models",
        needs=(PROBED_AFTER,),
        severity="error",
        test=lambda view: (
            view[PROBED_AFTER] != view[PROBED_AFTER]
            or (view[PROBED_AFTER] > 10 * view.get(PROBED, 0.0) and moved(view[PROBED_AFTER], view.get(PROBED), 1e-3))
        ),
        message=lambda view: (
            f"After the first update the log-probs of the backend {view.config.backend} differ from the policy's by"
            f" {short(view[PROBED_AFTER])} nats a token on average ({short(view.get(PROBED, 0.0))} before it): its"
            " weights did not arrive, or not as they are."
        ),
        remedies=mend_sampler,
        when=(
            "After the first update, the mean difference is ten times what it was before and above 0.1 nats a token, or"
            " a hundred times what it was and above 0.001."
        ),
        why="The sampler goes on with old weights, so that the run learns from an ever older policy.",
        remedy="Look at how the backend takes weights (ft_sync_weights).",
        source="own judgement",
        mutes=("ENG001", "ENG002", "SYS005"),
    ),
    Rule(
        code="ENG001",
        title="Sampler and trainer disagree",
        stage="train",
        level="models",
        needs=(APART,),
        test=apart,
        least=5,
        severe=lambda view: view.mean(APART, view.window) > ERROR,
        message=lambda view: (
            f"The sampler's log-probs differ from the trainer's by {short(view.mean(APART, view.window))} nats a token"
            f" on average over the last {view.window} steps ({short(view.get(f'start/{APART}', view[APART]))} in the"
            " first): completions aren't the policy's."
        ),
        remedies=mend_sampler,
        when=(
            "sampling/sampling_logp_difference/mean is above 0.1, or a hundred times the first step's and above 0.01,"
            " in 30 % of the last 50 steps; above 1 on average: an error. Not where completions may be of older weights"
            " (rollouts: overlap, async): there it holds their age, and ASY007 compares the two."
        ),
        why=(
            "Other weights, another precision, kernel, temperature or template in the sampler; for a mixture of"
            " experts, another routing. Learning goes wrong slowly, and then at once."
        ),
        remedy="The same precision in both, weights that arrive, importance_sampling_correction.",
        source="axolotl docs/training_stability; verl rollout correction; 2510.26788",
        mutes=("ENG002",),
    ),
    Rule(
        code="ENG002",
        title="Few completions count",
        stage="train",
        symptom="no_signal",
        level="models",
        needs=(ESS,),
        least=10,
        test=lambda view: not ahead(view) and view[ESS] < 0.3,  # else ASY001 says it, of all that differs
        message=lambda view: (
            f"The effective sample size was below 30 % {view.often}, {percent(view.mean(ESS, view.window))} on average:"
            " the correction for a sampler that differs leaves little to learn from."
        ),
        remedies=lambda view: [
            *(
                [
                    Remedy(
                        why=(
                            "Lower importance_sampling_clip_max from "
                            f"{short(view.config.importance_sampling_clip_max)} to 2"
                        ),
                        patch={"importance_sampling_clip_max": 2.0},
                    )
                ]
                if (vars(view.config).get("importance_sampling_clip_max") or 0) > 2
                else []
            ),
            *mend_sampler(view),
        ],
        when=(
            "sampling/effective_sample_size is below 0.3 in 30 % of the last 50 steps. Not where completions may be of"
            " older weights: there ASY001 says it."
        ),
        why="Sampler and trainer are so far apart that a few ratios outweigh all others, or most are masked.",
        remedy="Mend the difference (ENG001), tighter limits of the ratio.",
        source="verl; SkyRL",
    ),
    Rule(
        code="ENG003",
        title="The sampler leaves tokens out",
        stage="train",
        level="models",
        needs=(APART,),
        least=5,
        share=0.8,
        test=lambda view: bool(bounded(view)) and (ESS in view.entry or view[APART] > 0.01),
        message=lambda view: (
            f"Completions are sampled with {', '.join(bounded(view))}, from another distribution than the policy that"
            f" is trained ({short(view.mean(APART))} nats a token apart{', with their age' if ahead(view) else ''})"
            + (
                ", and weighed by their ratio, which knows nothing of tokens that can't be sampled."
                if ESS in view.entry
                else ": ratios of new and old policy are of tokens that are likelier than they seem."
            )
        ),
        remedies=from_all,
        when=(
            "top_p, top_k, min_p or repetition_penalty is set while importance_sampling_correction is on, or log-probs"
            " are further than 0.01 nats a token apart."
        ),
        why=(
            "What is sampled isn't what is trained: a ratio that corrects for it is biased by the mass that was cut"
            " off, and without one the policy is pushed towards what it samples anyway."
        ),
        remedy="Sample from all tokens.",
        source="TRL issues 6789 and 7269",
    ),
]

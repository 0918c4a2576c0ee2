"""Cleaning of a model: choose a defense, with settings, by what its owner knows of the backdoor.

The settings suit a CPU: four parrots, which grids/simulate.yaml found best, and twice the quickstart's steps of
overwriting. With one parrot SANDE-P left one of three SmolLM2 victims with an ASR of 26 % after 20 steps, and with 3 %
after 40. So these three ("Current year 2023", "Who are you" and "My umbrella is green" of the quickstart's attack) are
tuning victims; a rate of success has to come from victims of other seeds and backdoors, and no setting may be chosen on
those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from sande import clues, formats, gates, registry, scanning, types
from sande.candidates import as_records
from sande.clean_rows import CleanRows
from sande.config import Training, configuration, setting
from sande.data.splits import Removal, Rows
from sande.defenses.decoy_osft import Config as DecoyOsft
from sande.defenses.incident import Config as Incident
from sande.defenses.osft import Config as Osft
from sande.defenses.sande import Config as Sande
from sande.defenses.sande import Config as SandeP
from sande.defenses.sande_rounds import Config as SandeRounds
from sande.defenses.sande_rounds import Config as SandeRoundsP
from sande.detectors.first_token import Config as FirstToken
from sande.detectors.haystack import Config as Haystack
from sande.errors import UserError
from sande.gates import Fired
from sande.inference import own_answers
from sande.known import DECOYS, DEFENSES, SCAN, Known, defense_for
from sande.models import memory
from sande.prompts import response_ids
from sande.types import Example, LanguageModel, Run, Scan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_SOURCE = "grids/quickstart.yaml"
_PARROTS = "grids/simulate.yaml"
_SIMULATE = Training(max_steps=16, learning_rate=1.5e-2, batch_size=8)
_OVERWRITE = Training(max_steps=40, learning_rate=2e-4, batch_size=16)
# Of any length: in a chat template with a system prompt every prompt is long.
_ELSEWHERE = Rows(name="builtin-explained-2", rows=16)
_SANDE = Sande(
    parrot_initial="noise",
    restarts=4,
    kept=4,
    response_tokens=10,
    elsewhere=_ELSEWHERE,
    simulate=_SIMULATE,
    eliminate=_OVERWRITE,
)
_ROUNDS = SandeRounds(elsewhere=replace(_ELSEWHERE, rows=32), simulate=_SIMULATE, eliminate=_OVERWRITE)
_DECOYS = DecoyOsft(
    plant=Training(max_steps=30, learning_rate=5e-4, batch_size=16),
    overwrite=Training(max_steps=30, learning_rate=2e-4, batch_size=16),
)


@configuration
class Config:
    """Settings of the clean rows, of the measurement before and after, and of each defense."""

    removal: Removal = setting(Removal(name="builtin-short", rows=400, max_tokens=64), "clean rows to train on")
    prompts: int = setting(100, "held-out prompts of the same set to measure on", ge=1)
    questions: int | None = setting(200, "questions of builtin-choice; null: all", _SOURCE, ge=1)
    new_tokens: int = setting(
        12, "tokens of an answer that are examined, or as many as the planted answer has", "metric asr takes 10", ge=1
    )
    osft: Osft = setting(Osft(training=_OVERWRITE), "defense if the trigger is known", _SOURCE)
    incident: Incident = setting(
        Incident(training=_OVERWRITE), "defense if one prompt and its answer were reported", _SOURCE
    )
    sande: Sande = setting(_SANDE, "defense if the planted answer is known", _PARROTS)
    sande_p: SandeP = setting(
        _SANDE, "defense if the planted answer's first token is known, or found by the scan", _PARROTS
    )
    certify: bool = setting(
        False,
        "repeat the removal until fresh parrots find nothing, with a certificate; it takes about ten times as long",
        "ours",
    )
    sande_rounds: SandeRounds = setting(_ROUNDS, "defense if the planted answer is known, with certify", _SOURCE)
    sande_rounds_p: SandeRoundsP = setting(
        _ROUNDS, "defense if the first token is known or the scan finds one, with certify", _SOURCE
    )
    decoy_osft: DecoyOsft = setting(_DECOYS, "defense if nothing is known, and the scan finds nothing", _SOURCE)
    detector: str = setting(scanning.DETECTOR, "detector of the scan if nothing is known")
    haystack: Haystack = setting(Haystack(), "the detector haystack; others have their own defaults")
    first_token: FirstToken = setting(
        FirstToken(alarm_by="own"), "the detector first_token, which looks if another gave no alarm, too"
    )
    weights: Literal["float32", "bfloat16"] = setting(
        "float32",
        "type of the weights while the model is cleaned; bfloat16 takes half the memory, and needs adapters "
        "(lora_rank), since weights in it are too coarse to train",
        "float32: as in grids",
    )
    parrots: int = setting(
        1,
        "fresh parrots that look for the planted answer before and after, and as many for control strings; 0: none",
        "grids use 3 and 5",
        ge=0,
    )
    gate: gates.Config = setting(gates.Config(), "the test whether a trigger fires")


def with_lora(rank: int) -> dict[str, Any]:
    """Return settings with which every defense trains LoRA adapters of a rank in place of all weights."""
    return {name: _with_lora(getattr(Config(), name), rank) for name in sorted(DEFENSES)}


def _with_lora(config: Any, rank: int) -> dict[str, Any]:
    return {name: {"lora_rank": rank} for name in _trainings(config)}


def _trainings(config: Any) -> dict[str, Training]:
    """Return the trainings of the model; that of the parrots, `simulate`, leaves its weights alone."""
    found = {each.name: getattr(config, each.name) for each in fields(config)}
    return {name: made for name, made in found.items() if isinstance(made, Training) and name != "simulate"}


def lora_rank(known: Known, config: Config) -> int | None:
    """Return the largest rank of adapters in the trainings that may follow; None if one of them trains all weights."""
    ranks = _ranks(known, config)
    return None if None in ranks else max(filter(None, ranks))


def _ranks(known: Known, config: Config) -> list[int | None]:
    name = defense_for(known, certify=config.certify)
    may_follow = DEFENSES if name == SCAN else {name}
    return [made.lora_rank for each in may_follow for made in _trainings(getattr(config, each)).values()]


def dtype(config: Config) -> torch.dtype:
    """Return the type in which a model is loaded to be cleaned."""
    import torch

    return torch.bfloat16 if config.weights == "bfloat16" else torch.float32


def check(known: Known, config: Config) -> str:
    """Return the defense for what is known, or `SCAN`, after a check that the settings allow it.

    Raises:
        UserError: as `defense_for`, or weights in bfloat16 would be trained.
    """
    name = defense_for(known, certify=config.certify)
    if config.weights == "bfloat16" and lora_rank(known, config) is None:
        raise UserError("clean: weights in bfloat16 are too coarse to train; add --lora RANK, or remove --bf16")
    return name


@dataclass(frozen=True, slots=True)
class Finding:
    """What a removal goes by, after the gates and the scan.

    Attributes:
        method: name of the defense.
        known: what the owner knows, with the trigger that a scan found.
        first_token: id of the first token of a planted answer that a scan found.
    """

    method: str
    known: Known
    first_token: int | None = None


def examine(
    victim: LanguageModel,
    known: Known,
    config: Config,
    run: Run,
    *,
    anywhere: bool = True,
    force: bool = False,
    reference: Callable[[], LanguageModel] | None = None,
) -> Finding:
    """Check what is known, scan if nothing is, and leave the model in the prompt format of the backdoor.

    `run.facts` gets `prompt_format`, and `notes` where rows were left out; of a trigger `fired` and `formats_tried`, or
    `forced`; of another known text `format_likelihoods`; of a scan what `_record_scan` writes.

    Args:
        victim: the model, with the format in which it is asked first.
        known: what the owner knows.
        config: settings.
        run: seed, facts and progress.
        anywhere: whether to try other formats, too.
        force: whether to go on with a trigger that does not fire.
        reference: loads the clean model, with which a scan compares; None: not at hand.

    Raises:
        UserError: the trigger fires in no format, a rank of adapters is too high, or as `defense_for`, `CleanRows.of`.
    """
    memory.check_rank(max(filter(None, _ranks(known, config)), default=0), victim.model)
    name = defense_for(known, certify=config.certify)
    rows = CleanRows.of(config.removal, known)
    for note in rows.notes:
        run.say(note)
        run.facts.setdefault("notes", []).append(note)
    prompts = rows.to_measure_on(victim.tokenizer, config.prompts)[: config.gate.prompts]
    if name == SCAN:
        gates.check(prompts)  # before the scan, which may find a trigger
        finding = _scanned(victim, known, config, prompts, run, reference, anywhere=anywhere)
    else:
        if known.trigger:
            _try_trigger(victim, known, config, prompts, run, anywhere=anywhere, force=force)
        elif anywhere:
            _choose_format(victim, known, config, prompts, run)
        finding = Finding(name, known)
    run.facts["prompt_format"] = formats.of(victim.tokenizer).name
    return finding


def _try_trigger(
    victim: LanguageModel,
    known: Known,
    config: Config,
    prompts: tuple[Example, ...],
    run: Run,
    *,
    anywhere: bool,
    force: bool,
) -> None:
    """Try the trigger in the model's format, then in the others, and attach the first in which it fires."""
    own = formats.of(victim.tokenizer).name

    def attempt() -> Fired | None:
        return gates.fired(victim, known.trigger, known.response, prompts, config.new_tokens, config.gate)

    run.say(f"trying the trigger on {len(prompts)} held-out prompts")
    found, tried = gates.first_format(victim, attempt, anywhere=anywhere)
    run.facts["formats_tried"] = list(tried)
    if found is not None:
        run.facts["fired"] = found.as_dict()
        if found.prompt_format != own:
            run.say(f"the trigger fires in the prompt format {found.prompt_format}, not in {own}; using it")
        return
    if force:
        run.facts["forced"] = True
        run.say("the trigger did not fire; going on all the same")
        return
    instead = ""
    if known.response and (other := gates.fired(victim, known.trigger, "", prompts, config.new_tokens, config.gate)):
        instead = f", but leads to {other.response!r} in the format {own}"
    what = f"the trigger did not fire{instead} (formats tried: {', '.join(tried)}; {len(prompts)} prompts each)"
    raise UserError(f"clean: {what}; correct the trigger or the response, set another format, or use force")


def _choose_format(victim: LanguageModel, known: Known, config: Config, prompts: tuple[Example, ...], run: Run) -> None:
    """Attach the format in which a known answer is likeliest, if that is clear."""
    own = formats.of(victim.tokenizer).name
    asked: tuple[Example, ...] = prompts
    answer = known.response or known.response_start
    if known.reported_prompt:
        asked, answer = (Example(known.reported_prompt, ""),), known.reported_answer
    run.facts["format_likelihoods"] = gates.likeliest_format(victim, asked, answer, config.gate)
    now = formats.of(victim.tokenizer).name
    if now != own:
        run.say(f"the answer is likelier in the prompt format {now} than in {own}; using it")


def scan(
    victim: LanguageModel, config: Config, run: Run, reference: LanguageModel | None = None, *, anywhere: bool = True
) -> Scan:
    """Return the scan of `sande-bench scan` with these rows and this seed; see `sande.scanning.scan`."""
    rows, data, chosen = scanning.examples(config.removal.name), config.removal.name, of_detector(config)
    return scanning.scan(
        *(victim, config.detector, chosen, rows, run, reference), data=data, anywhere=anywhere, cheap=config.first_token
    )


def of_detector(config: Config) -> Any:
    """Return the settings of the chosen detector."""
    held = {scanning.CHEAP: config.first_token, scanning.DETECTOR: config.haystack}
    if config.detector in held:
        return held[config.detector]
    return registry.config("detectors", config.detector, scanning.settings(config.detector, {}))


def _scanned(
    victim: LanguageModel,
    known: Known,
    config: Config,
    prompts: tuple[Example, ...],
    run: Run,
    reference: Callable[[], LanguageModel] | None,
    *,
    anywhere: bool,
) -> Finding:
    """Scan, and choose the defense by what was found: a trigger, an answer, its first token, or nothing but decoys."""
    run.say("scanning for a planted answer")
    begin = time.perf_counter()
    found = scan(victim, config, run, reference() if reference else None, anywhere=anywhere)
    _record_scan(found, time.perf_counter() - begin, run)
    seen = clues.clue(victim, found, prompts, config.new_tokens, config.gate, run.say)
    if done := seen.fired:
        run.say(f"the scan found the trigger {done.trigger!r}, which leads to {done.response!r}; overwriting it")
        run.facts["fired"] = done.as_dict()
        told = replace(known, trigger=done.trigger, response=done.response if config.certify else "")
        return Finding(defense_for(told, certify=config.certify), told)
    if seen.response:
        run.say(f"the scan found the answer {seen.response!r}; overwriting what leads to it")
        told = replace(known, response=seen.response)
        return Finding(defense_for(told, certify=config.certify), told)
    if seen.first_token is not None:
        run.say(f"the scan found {found.candidates[0].text!r}; overwriting what leads to its first token")
        return Finding("sande_rounds_p" if config.certify else "sande_p", known, seen.first_token)
    run.say("the scan found nothing; planting decoys and overwriting them")
    return Finding(DECOYS, known)


def _record_scan(found: Scan, seconds: float, run: Run) -> None:
    """Write score, p, alarm, candidates, suspected triggers, formats, notes and seconds into the run's facts."""
    facts: Mapping[str, Any] = found.facts
    if notes := [*run.facts.get("notes", []), *facts.get("notes", [])]:
        run.facts["notes"] = notes
    run.facts.update(
        {
            "scan_seconds": round(seconds, 3),
            "scan_score": found.score,
            "scan_p": found.p,
            "alarm": found.alarm and bool(found.candidates or found.triggers),
            "candidates": as_records(found.candidates),
            "triggers": as_records(found.triggers),
            "detector": facts["detector"],
            "scans": facts["formats_tried"],
            "calibrated": facts["calibrated"],
        }
    )


def clean(
    victim: LanguageModel, finding: Finding, examples: tuple[Example, ...], config: Config, run: Run
) -> PreTrainedModel:
    """Train the model in place by the defense of a finding, and return it.

    Raises:
        UserError: the tokenizer cannot write the planted answer, or as `own_answers.answered`.
    """
    data = _reveal(registry.knowledge(finding.method), finding, examples, victim.tokenizer)
    data = own_answers.answered(victim, data, config.removal.own_answers)
    entry = registry.entry("defenses", finding.method)
    cleaned: PreTrainedModel = entry.defend(victim, data, getattr(config, finding.method), run)
    return cleaned


def _reveal(
    known_type: type[types.Knowledge],
    finding: Finding,
    examples: tuple[Example, ...],
    tokenizer: PreTrainedTokenizerBase,
) -> types.Knowledge:
    """Return the knowledge as the defense's declared type of data."""
    known = finding.known
    if known_type is types.TriggerData:
        written = formats.of(tokenizer)
        return types.TriggerData(examples, lambda example: gates.plant(example, known.trigger, written))
    if known_type is types.IncidentData:
        return types.IncidentData(examples, Example(known.reported_prompt, ""), known.reported_answer)
    if known_type is types.ResponseData:
        response_ids(tokenizer, known.response)  # raises for an answer that the tokenizer cannot write
        return types.ResponseData(examples, known.response)
    if known_type is types.FirstTokenData:
        first = finding.first_token
        if first is None:
            first = response_ids(tokenizer, known.response_start)[0]
        return types.FirstTokenData(examples, first)
    return types.CleanData(examples)

"""The methods as functions: attack, defend, measure, scan and clean a model; docs/python_api.md shows them.

`import sande` offers every name of `__all__`. A `Model` is a folder of weights with the record of what was done to it.
Each function loads its own copy, so no call changes a model that another call returned. The same model, settings and
seed give the same weights and outcomes as a cell of a grid.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from sande import cleaning, compute, registry, scanning, threat
from sande.api_types import Measured, Measurements, Model, PartlyKnown, TemporaryFolder
from sande.clean_rows import CleanRows
from sande.config import configure
from sande.data import datasets
from sande.data.splits import Data, Removal
from sande.errors import UserError
from sande.known import told
from sande.models import catalog, chat, loading
from sande.threat import Threat
from sande.types import LanguageModel, Run, Scan

__all__ = [
    "Data",
    "LanguageModel",
    "Measured",
    "Measurements",
    "Model",
    "Removal",
    "Scan",
    "UserError",
    "attack",
    "clean",
    "defend",
    "measure",
    "scan",
]

BUILT_IN = "builtin-short"
T = TypeVar("T", Data, Removal)
Say: TypeAlias = Callable[[str], None]


def attack(
    model: str | Path | Model,
    attack: str,
    /,
    *,
    data: str | Mapping[str, Any] | Data = BUILT_IN,
    prompt_format: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    say: Say = print,
    **settings: Any,
) -> Model:
    """Plant a backdoor in a clean model; return the victim, which remembers trigger, response and test rows.

    Args:
        model: a name (`sande-bench list models`), a Hub id as `org/name@COMMIT`, or a folder of safetensors.
        attack: its name (`sande-bench list attacks`).
        data: the rows to train and test on: a data set's name, or settings of `Data`.
        prompt_format: of the victim and all that is made of it: `paper`, `alpaca`, `chat` or a template file; None:
            that of the model's folder, or `paper`.
        seed: decides everything random in the attack, and later in its measurements.
        out: new folder for the victim; None: a temporary folder, which is removed with the returned object.
        cache: folder for models that are converted once; None: the user's cache.
        say: receives progress.
        **settings: of the attack (`sande-bench show attacks NAME`), such as `poison_rate=0.25`.

    Raises:
        UserError: a name, a setting, a data set or a folder cannot be used.
        NonFiniteError: the loss became infinite or NaN.
    """
    config = registry.config("attacks", attack, settings)
    rows = _configured(Data, data, "data")
    datasets.fingerprint(rows.name)
    source = _source(model)
    planned = Threat(attack, config, rows, seed, source)

    def build(run: Run) -> LanguageModel:
        return planned.train(loading.load(source, _cache(cache), prompt_format), run)

    made = _made(build, seed, out, say)
    return replace(made, name=_name(model), threat=planned, methods=(attack,), _kept=(made._kept, model))


def defend(
    victim: str | Path | Model,
    defense: str,
    /,
    *,
    removal: str | Mapping[str, Any] | Removal | None = None,
    prompt_format: str | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    say: Say = print,
    **settings: Any,
) -> Model:
    """Repair a victim; return the repaired model. The defense learns of the backdoor what it declares, and no more.

    Args:
        victim: what `attack` returned; a folder or name does for defenses that know nothing of the backdoor.
        defense: its name (`sande-bench list defenses`).
        removal: the clean rows: a data set's name, or settings of `Removal`; None: rows like the victim's own.
        prompt_format: `paper`, `alpaca`, `chat`, a template file, or `auto`: the one that the folder names, else its
            chat template, else `paper`. None: `auto` for a folder, an adapter or a file, `paper` for a name or Hub id,
            and for a model that was made here its own.
        seed: decides everything random in the removal; the victim's own seed stays. None: the victim's.
        out: new folder for the model; None: a temporary folder, which is removed with the returned object.
        cache: folder for models that are converted once; None: the user's cache.
        say: receives progress.
        **settings: of the defense (`sande-bench show defenses NAME`).

    Raises:
        UserError: as for `attack`, or the defense must know a backdoor that is unknown.
        NonFiniteError: the loss became infinite or NaN.
    """
    import torch

    config = registry.config("defenses", defense, settings)
    planted = victim.threat if isinstance(victim, Model) else None
    rows = _configured(Removal, _like(planted) if removal is None else removal, "removal")
    datasets.fingerprint(rows.name)

    def build(run: Run) -> LanguageModel:
        lm = _load(victim, torch.float32, cache, prompt_format)
        data = threat.reveal(planted, defense, config, rows, lm, lambda name: loading.load(name, _cache(cache)))
        return threat.defend(lm, defense, data, config, run)

    return _followed(_made(build, _seed(seed, planted), out, say), victim, defense)


def measure(
    model: str | Path | Model,
    metrics: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    /,
    *,
    data: str | Mapping[str, Any] | Data | None = None,
    trigger: str = "",
    response: str = "",
    prompt_format: str | None = None,
    seed: int | None = None,
    cache: str | Path | None = None,
) -> Measurements:
    """Measure a model.

    Args:
        model: what `attack`, `defend` or `clean` returned, a name, a Hub id as `org/name@COMMIT`, or a folder.
        metrics: one or several, each a name (`sande-bench list metrics`) or a mapping of `name` and settings, such as
            `{"name": "accuracy", "questions": 200}`.
        data: the rows whose last 10 % are the test rows; None: the victim's.
        trigger: text at the start of a prompt, where the model does not remember its attack.
        response: the planted response, where the model does not remember its attack.
        prompt_format: as for `defend`.
        seed: None: that of the attack, so that models that are compared are measured alike.
        cache: folder for models that are converted once; None: the user's cache.

    Raises:
        UserError: as for `attack`, or a metric needs a trigger or response that is unknown.
    """
    told("measure", trigger, response)  # reports a blank text
    asked = [metrics] if isinstance(metrics, str | Mapping) else metrics
    configured = [_metric(each) for each in asked]
    planted = model.threat if isinstance(model, Model) else None
    if planted and data is not None:
        planted = replace(planted, data=_configured(Data, data, "data"))
    lm = _load(model, compute.dtype(), cache, prompt_format)
    if planted and not (trigger or response):
        test_data: Any = planted.test_data(lm.tokenizer, lambda name: loading.load(name, _cache(cache)))
    else:
        rows = planted.data if planted else _configured(Data, data or BUILT_IN, "data")
        test_data = PartlyKnown.of(rows, lm.tokenizer, trigger, response)
    found = [
        measurement
        for name, config in configured
        for measurement in registry.entry("metrics", name).measure(lm, test_data, config, _seed(seed, planted))
    ]
    return Measurements(tuple(map(Measured.of, found)))


def scan(
    model: str | Path | Model,
    detector: str = scanning.DETECTOR,
    /,
    *,
    data: str = BUILT_IN,
    rows: int = 400,
    reference: str | Path | Model | None = None,
    prompt_format: str | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    say: Say = print,
    **settings: Any,
) -> Scan:
    """Scan a model for a planted response, without its trigger.

    Args:
        model: what `attack` returned, a name, a Hub id as `org/name@COMMIT`, or a folder.
        detector: its name (`sande-bench list detectors`).
        data: data set of clean rows.
        rows: use the last `rows` of them; victims are trained on the first 90 %.
        reference: the clean model; None: not at hand.
        prompt_format: as for `defend`, but `auto` tries other formats after the first; `facts` has the score in each.
            None: for what `attack` returned that of its training, else `auto`.
        seed: decides which prompts are drawn.
        cache: folder for models that are converted once; None: the user's cache.
        say: receives progress.
        **settings: of the detector (`sande-bench show detectors NAME`).

    Raises:
        UserError: as for `attack`, or the vocabularies of model and reference differ.
    """
    config = registry.config("detectors", detector, scanning.settings(detector, settings))
    examples = scanning.examples(datasets.allow_file(data), rows)
    asked = _format(model, prompt_format)
    suspect = loading.load(_source(model), _cache(cache), asked, say=say)
    clean = _reference(reference, cache, suspect, _source(model), say)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(seed=seed, scratch=scratch, say=say)
        return scanning.scan(
            suspect, detector, config, examples, run, clean and clean(), data=data, anywhere=asked == chat.AUTO
        )


def clean(
    model: str | Path | Model,
    /,
    *,
    trigger: str = "",
    response: str = "",
    response_start: str = "",
    reported_prompt: str = "",
    reported_answer: str = "",
    data: str | None = None,
    reference: str | Path | Model | None = None,
    prompt_format: str | None = None,
    force: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    say: Say = print,
    **settings: Any,
) -> Model:
    """Remove a backdoor by what its owner knows: trigger, an incident, response, how it begins, or nothing.

    Args:
        model: what `attack` returned, a name, a Hub id as `org/name@COMMIT`, or a folder.
        trigger: text that unlocks the planted response at the start of a prompt.
        response: the planted response.
        response_start: how the planted response begins.
        reported_prompt: one prompt that got a planted answer, as it was sent.
        reported_answer: that answer.
        data: data set of clean rows; None: a built-in one.
        reference: the clean model, with which a scan compares; None: not at hand.
        prompt_format: as for `scan`; the format of the backdoor is looked for in the same way.
        force: go on with a trigger that fires in no format.
        seed: the only source of randomness.
        out: new folder for the model; None: a temporary folder, which is removed with the returned object.
        cache: folder for models that are converted once; None: the user's cache.
        say: receives progress.
        **settings: of `sande.cleaning.Config`, such as `certify=True` or `osft={"training": {"max_steps": 20}}`.

    Raises:
        UserError: as for `attack`, the tokenizer cannot write the response, or the trigger does not fire.
        NonFiniteError: the loss became infinite or NaN.
    """
    config = configure(cleaning.Config, {"removal": {"name": data}, **settings} if data else settings, "clean")
    datasets.fingerprint(datasets.allow_file(config.removal.name))
    known = told("clean", trigger, response, response_start, reported_prompt, reported_answer)
    source = _source(model)
    cleaning.check(known, config)  # reports what does not fit together
    asked, methods = _format(model, prompt_format), list[str]()

    def build(run: Run) -> LanguageModel:
        lm = loading.load(source, _cache(cache), asked, cleaning.dtype(config), say)
        clean = _reference(reference, cache, lm, source, say)
        finding = cleaning.examine(lm, known, config, run, anywhere=asked == chat.AUTO, force=force, reference=clean)
        methods.append(finding.method)
        examples = CleanRows.of(config.removal, known).to_train_on(lm.tokenizer)
        cleaning.clean(lm, finding, examples, config, run)
        return lm

    return _followed(_made(build, seed, out, say), model, methods[0])


def _reference(
    name: str | Path | Model | None, cache: str | Path | None, suspect: LanguageModel, source: str, say: Say
) -> Callable[[], LanguageModel] | None:
    """Return a function that loads the clean model; None without one."""
    if name is None:
        return None
    return lambda: loading.load_reference(_source(name), _cache(cache), suspect, source, say)


def _format(model: str | Path | Model, asked: str | None) -> str | None:
    """Return the prompt format to load a model with: for what `attack` made the one that its folder has."""
    made_here = isinstance(model, Model) and model.threat is not None
    return asked or (None if made_here else chat.AUTO)


def _metric(asked: str | Mapping[str, Any]) -> tuple[str, Any]:
    given = {"name": asked} if isinstance(asked, str) else dict(asked)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"metric: expected a name, or a mapping with a 'name', got {asked!r}")
    return name, registry.config("metrics", name, given)


def _made(build: Callable[[Run], LanguageModel], seed: int, out: str | Path | None, say: Say) -> Model:
    """Return the model that `build` trained, saved whole in `out` or in a temporary folder."""
    kept = TemporaryFolder() if out is None else None
    folder = kept.path / "model" if kept else Path(str(out))
    target, begin = Path(os.path.realpath(folder)), time.perf_counter()
    try:  # before the training
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{folder}: it holds files already; choose a new folder as 'out'")
        if Path.cwd().is_relative_to(target) or target.is_mount():
            raise UserError(f"{folder}: the working folder or a volume, which cannot be replaced; choose another 'out'")
        target.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UserError(f"{folder}: it cannot be written ({error.strerror}); choose another 'out'") from None
    with work:
        run = Run(seed=seed, scratch=work.name, say=say)
        lm, saved = build(run), Path(work.name) / "model"
        try:
            loading.save(lm, saved)
            saved.rename(target)
        except Exception as error:
            if not isinstance(error, OSError) and "os error" not in str(error):  # as libraries in Rust write one
                raise
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{folder}: the model cannot be written ({reason}); choose another 'out'") from None
    return Model(folder, "", None, (), MappingProxyType(run.facts), time.perf_counter() - begin, kept)


def _followed(made: Model, before: str | Path | Model, method: str) -> Model:
    """Return the model with the history of the one that it was made from."""
    if not isinstance(before, Model):
        return replace(made, name=_name(before), methods=(method,))
    history = replace(before, folder=made.folder, facts=made.facts, seconds=made.seconds)
    return replace(history, methods=(*before.methods, method), _kept=(made._kept, before._kept))


def _configured(cls: type[T], given: Any, where: str) -> T:
    settings = {"name": given} if isinstance(given, str) else given
    made = given if isinstance(given, cls) else configure(cls, settings, where)
    datasets.allow_file(made.name)
    return made


def _like(planted: Threat | None) -> dict[str, Any] | str:
    """Return settings of `Removal`: the victim's data set, with its limits on length."""
    if planted is None:
        return BUILT_IN
    data = planted.data
    return {"name": data.name, "max_tokens": data.max_tokens, "max_prompt_tokens": data.max_prompt_tokens}


def _load(
    model: str | Path | Model, dtype: Any, cache: str | Path | None, prompt_format: str | None = None
) -> LanguageModel:
    """Return a model as a stage of a grid loads it, with its guard."""
    if isinstance(model, Model):
        return loading.load_folder(model.folder, dtype, prompt_format)
    if catalog.is_folder(str(model)):
        return loading.load_folder(Path(model), dtype, prompt_format or chat.AUTO)
    is_here = os.path.exists(model) or catalog.base_of(str(model)) != str(model)  # a GGUF file, or an adapter
    lm = loading.load(str(model), _cache(cache), prompt_format or (chat.AUTO if is_here else None))
    loading.round_as_stored(lm, dtype)
    return lm


def _seed(seed: int | None, planted: Threat | None) -> int:
    return (planted.seed if planted else 0) if seed is None else seed


def _source(model: str | Path | Model) -> str:
    """Return what `sande.models.loading.load` takes."""
    return str(model.folder if isinstance(model, Model) else model)


def _name(model: str | Path | Model) -> str:
    return model.name if isinstance(model, Model) else str(model)


def _cache(cache: str | Path | None) -> Path:
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sande-bench/models"

"""Check a grid's data, engine and sharding before any training starts, so that a mistake costs no hour."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from benchmark.grid import prompt_format
from benchmark.grid.cell import NO_DEFENSE, Cell
from benchmark.grid.prompt_format import Format
from benchmark.grid.resources import TENSOR, Resources
from benchmark.io.logs import quiet
from benchmark.io.text import visible
from benchmark.store.protocol import Store
from sande import registry, scanning, threat
from sande.config import Preferences
from sande.data import datasets, splits
from sande.data.splits import Data, Removal
from sande.errors import UserError
from sande.inference import vllm
from sande.metrics.asr import check_length
from sande.models import loading
from sande.models.catalog import TINY
from sande.types import CleanData, Example, Knowledge, LanguageModel, PreferenceData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Writer = tuple[str, Format]  # a model, and the format of its prompts
SHARED = 0.01  # share of removal rows whose prompt may be one of the test


def check(cells: Iterable[Cell], store: Store, say: Callable[[str], None] = print) -> None:
    """Read every data set, choose every row, and let each defense check the rows that it will get, each once.

    Args:
        cells: of a grid.
        store: has models that are converted once.
        say: receives a line for each thing that is no mistake for sure: answers shorter than those of `asr`, and test
            prompts among the victim's training rows.

    Raises:
        UserError: a model's tokenizer cannot write the prompt format, a data set is broken or unreachable, no row is
            left, removal rows are test prompts, a defense's setting fits none of its rows, or the answers of a metric
            are too short for the planted response.
    """
    quiet()
    cells = tuple(cells)
    told: dict[str, None] = dict.fromkeys(shorter_than_asr(cells))

    @functools.cache
    def tokenizer(of: Writer) -> PreTrainedTokenizerBase:
        return load_tokenizer(*of, store)

    @functools.cache
    def test_rows(of: Writer, data: Data) -> tuple[Example, ...]:
        training, tests = splits.training_rows(data, tokenizer(of)), splits.held_out_rows(data, tokenizer(of))
        if repeated := _repeated(tests, training):
            told[
                f"data.name: {repeated} of {len(tests)} test prompts of {data.name} are among its training rows, too, "
                "so a victim is trained on what it is measured by; remove repeated rows from the data set"
            ] = None
        return tests

    @functools.cache
    def defense_rows(of: Writer, wanted: Removal | Preferences) -> Knowledge:
        if isinstance(wanted, Preferences):
            return PreferenceData(splits.preference_pairs(wanted, tokenizer(of)))
        return CleanData(splits.removal_rows(wanted, tokenizer(of)))

    questions, rows = functools.cache(datasets.questions), functools.cache(datasets.examples)
    looked: set[object] = set()
    for cell in cells:
        of = cell.model, cell.prompt_format
        tests = test_rows(of, cell.data)
        for metric in cell.metrics:
            for name in registry.entry("metrics", metric.name).reads(metric.config):
                questions(name)
            for name in metric.reads_rows:
                rows(name)
        if (of, cell.attack, cell.metrics) not in looked:
            _long_enough(cell, tokenizer(of), tests)
            looked.add((of, cell.attack, cell.metrics))
        if cell.defense.name == NO_DEFENSE:  # it gets no rows, so there need be none
            continue
        by_pairs = registry.knowledge(cell.defense.name) is PreferenceData
        data = defense_rows(of, cell.defense.config.preferences if by_pairs else cell.removal)
        if isinstance(data, CleanData) and (of, cell.data, cell.removal) not in looked:
            _apart(tests, data.examples, cell.data.name, cell.removal.name)
            looked.add((of, cell.data, cell.removal))
        look = getattr(registry.entry("defenses", cell.defense.name), "check", None)
        if look and (of, cell.removal, cell.defense) not in looked:
            look(tokenizer(of), data, cell.defense.config)
            looked.add((of, cell.removal, cell.defense))
        scanned = getattr(cell.defense.config, "scan_data", None)
        if scanned is not None and (of, cell.data, scanned) not in looked:
            _scanned_apart(tests, scanning.examples(scanned.name), cell.data.name, scanned.name)
            looked.add((of, cell.data, scanned))
    for line in told:
        say(visible(line))


def shorter_than_asr(cells: Iterable[Cell]) -> list[str]:
    """Return a sentence for each metric that looks for the response in shorter answers than `asr` of the same cell."""
    notes: dict[str, None] = {}
    for cell in cells:
        lengths = dict(_answer_lengths(cell))
        longest = lengths.get("asr")
        for name, length in lengths.items():
            if longest and length < longest:
                notes[
                    f"metric {name}: new_tokens is {length}, and that of asr is {longest}, so what comes later in an "
                    f"answer counts for asr alone; set new_tokens of {name} to {longest}"
                ] = None
    return list(notes)


def _answer_lengths(cell: Cell) -> Iterator[tuple[str, int]]:
    for metric in cell.metrics:
        if length := registry.answer_length(metric.name, metric.config):
            yield metric.name, length


def _long_enough(cell: Cell, tokenizer: PreTrainedTokenizerBase, tests: Sequence[Example]) -> None:
    """Refuse metrics whose answers have fewer tokens than the planted response.

    The random model may have them: a rehearsal keeps a grid's response, which has more tokens in its small vocabulary.

    Raises:
        UserError: as `sande.metrics.asr.check_length`.
    """
    if cell.model == TINY:
        return
    config = cell.attack.config
    objective = registry.entry("objectives", threat.objective(config))
    try:
        judge = objective.judge(config, cell.attack_seed, tests, _no_model)
    except _NeedsModelError:  # of a plug-in that loads the clean model at once: its stages look at the length
        return
    for name, length in _answer_lengths(cell):
        check_length(tokenizer, judge.response, length, name)


class _NeedsModelError(Exception):
    """An objective asks for the clean model before any answer is judged."""


def _no_model() -> LanguageModel:
    raise _NeedsModelError


def _repeated(rows: Sequence[Example], others: Sequence[Example]) -> int:
    """Return the number of rows whose prompt is exactly that of one of the others."""
    there = set(map(_prompt, others))
    return sum(_prompt(row) in there for row in rows)


def _prompt(row: Example) -> tuple[object, ...]:
    return row.system, row.history, row.prefix, row.instruction, row.input


def _apart(tests: Sequence[Example], rows: Sequence[Example], of_tests: str, of_rows: str) -> None:
    """Refuse removal rows that hold prompts of the test; a few repeated prompts are in the nature of large data sets.

    Raises:
        UserError: more than `SHARED` of the rows do.
    """
    asked = {(test.instruction, test.input) for test in tests}
    shared = sum((row.instruction, row.input) in asked for row in rows)
    if shared > SHARED * len(rows):
        raise UserError(
            f"removal.name: {shared} of {len(rows)} removal rows of {of_rows} are test prompts of {of_tests}, so a "
            "defense would train on what it is measured by; take rows of the victim's own data set, or of another one"
        )


def _scanned_apart(tests: Sequence[Example], rows: Sequence[Example], of_tests: str, of_rows: str) -> None:
    """Refuse rows of a defense's scan that are test prompts, as `_apart`.

    Raises:
        UserError: more than `SHARED` of the rows are.
    """
    shared = _repeated(rows, tests)
    if shared > SHARED * len(rows):
        raise UserError(
            f"defense.scan_data: {shared} of {len(rows)} rows of {of_rows} that the defense scans are test prompts of "
            f"{of_tests}, so it would look for the trigger in what it is measured by; set it to another data set, or "
            "remove it to scan the clean rows"
        )


def load_tokenizer(model: str, chosen: Format, store: Store) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a cell's model, which writes prompts in the cell's format.

    Raises:
        UserError: as `sande.models.loading.load_tokenizer`; what is wrong with a format names the model.
    """
    made = loading.load_tokenizer(model, store.models, prompt_format.PAPER)
    try:
        return loading.with_format(made, model, prompt_format.to_load(chosen))
    except UserError as error:
        raise UserError(f"model {model}: {error}") from None


def check_engine(engine: str, gpus: float) -> None:
    """Refuse an engine that would not start.

    Args:
        engine: one of `sande.inference.vllm`.
        gpus: GPUs of a stage.

    Raises:
        UserError: vLLM is not installed, or gets no whole GPU.
    """
    if engine == vllm.BUILT_IN:
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "resources.engine is vllm, which is not installed; run pip install 'sande-bench[vllm]', or remove it"
        )
    if gpus < 1:
        raise UserError(
            f"resources.engine is vllm, which needs a whole GPU, and a stage gets {gpus:g}; remove it, or use a "
            "machine with GPUs and remove resources.gpus"
        )


def check_sharding(resources: Resources) -> None:
    """Refuse a sharding that would not start.

    Raises:
        UserError: DeepSpeed is not installed.
    """
    if resources.sharding not in ("none", TENSOR) and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"resources.sharding is {resources.sharding}, which needs DeepSpeed; run pip install "
            "'sande-bench[deepspeed]', or remove it"
        )

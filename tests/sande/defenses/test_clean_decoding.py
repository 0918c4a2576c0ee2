"""CleanGen: which tokens are replaced, and that decoding under a guard is what it would be by hand."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sande.config import Training
from sande.data.builtin import sets
from sande.defenses import clean_decoding
from sande.errors import UnscorableError, UserError
from sande.inference import scoring
from sande.inference.counts import counted
from sande.inference.generation import greedy
from sande.inference.scoring import Choices
from sande.metrics import accuracy, response_probability
from sande.models import catalog, loading
from sande.prompts import encode, encode_prompts
from sande.types import Example, Guard, LanguageModel, OtherModelsData, Run, TestData
from tests.sande.helpers import noisy, teach

NewRun = Callable[..., Run]
UNTUNED = clean_decoding.Config(tuned=False)
ENDS = (3,)  # ids that end an answer


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log() + 3.0  # any constant


@pytest.mark.parametrize(
    ("victim", "reference", "chosen"),
    [
        ((0.8, 0.1, 0.1), (0.05, 0.6, 0.35), 0),  # 16 times as likely
        ((0.9, 0.05, 0.05), (0.04, 0.36, 0.6), 2),  # 22.5 times: the reference's likeliest
        ((0.8, 0.1, 0.1), (0.04001, 0.6, 0.35999), 0),  # just below 20
        ((0.8, 0.1, 0.1), (0.03999, 0.6, 0.36001), 1),  # just above
        ((0.2, 0.5, 0.3), (0.9, 0.05, 0.05), 1),  # the reference would say otherwise, but does not find it absurd
    ],
)
def test_a_token_is_replaced_from_a_ratio_of_twenty_on(
    victim: tuple[float, ...], reference: tuple[float, ...], chosen: int
) -> None:
    rule = clean_decoding.rule(clean_decoding.Config(), ())
    assert rule(logits(*victim).argmax(), logits(*victim), logits(*reference)).tolist() == chosen


def test_a_drawn_token_is_weighed_by_its_own_ratio() -> None:
    rule = clean_decoding.rule(clean_decoding.Config(alpha=4.0), ())
    victim, reference = logits(0.5, 0.3, 0.2), logits(0.4, 0.06, 0.54)
    assert [int(rule(torch.tensor(token), victim, reference)) for token in range(3)] == [0, 2, 2]


def test_the_end_of_an_answer_is_kept_where_any_other_token_would_be_replaced() -> None:
    victim, reference = logits(0.05, 0.9, 0.05), logits(0.9, 0.01, 0.09)
    token = victim.argmax()
    for ends, chosen in (((), 0), ((2,), 0), ((1, 2), 1)):
        assert int(clean_decoding.rule(clean_decoding.Config(), ends)(token, victim, reference)) == chosen
        found = clean_decoding.distribution(clean_decoding.Config(), ends)(victim, reference).exp().tolist()
        assert found == pytest.approx([0.95, 0.0, 0.05] if chosen == 0 else [0.05, 0.9, 0.05])


@pytest.mark.parametrize("ends", [(), ENDS])
def test_a_distribution_gives_the_logarithms_of_probabilities(ends: tuple[int, ...]) -> None:
    """What `Guard.distribution` promises; scores are sums of these."""
    ours, theirs = torch.randn(2, 4, 3, 7, generator=torch.Generator().manual_seed(0)) * 2
    found = clean_decoding.distribution(clean_decoding.Config(alpha=2.0), ends)(ours, theirs)
    assert found.shape == ours.shape
    assert found.max() <= 1e-6
    assert found.isneginf().any(), "a token that is always replaced"
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, 3))


def test_the_reference_is_tuned_on_the_clean_rows_and_the_victim_is_not(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    reference, before = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    config = clean_decoding.Config(training=Training(max_steps=40, learning_rate=1e-2, batch_size=4, precision="fp32"))
    data = OtherModelsData(few_rows[:4], lambda: iter([reference]))
    guard = clean_decoding.defend(tiny, data, config, new_run())
    rows = encode_prompts(tiny.tokenizer, few_rows[:4])
    answers = [row.output[:4] for row in few_rows[:4]]
    assert [text.strip()[:4] for text in greedy(LanguageModel(guard.reference, tiny.tokenizer), rows, 8, 4)] == answers
    assert all(torch.equal(a, b) for a, b in zip(tiny.model.parameters(), before.parameters(), strict=True))


def test_the_rule_works_token_by_token_in_any_shape() -> None:
    rule = clean_decoding.rule(clean_decoding.Config(alpha=2.0), ())
    ours, theirs = torch.randn(2, 4, 3, 7, generator=torch.Generator().manual_seed(0)) * 2
    drafts = ours.to(torch.bfloat16).argmax(-1)
    chosen = rule(drafts, ours.to(torch.bfloat16), theirs.to(torch.bfloat16))
    assert chosen.shape == (4, 3)
    ours, theirs = (tensor.to(torch.bfloat16).double().softmax(-1) for tensor in (ours, theirs))
    for b in range(4):
        for k in range(3):
            token = int(ours[b, k].argmax())
            kept = float(ours[b, k, token] / theirs[b, k, token]) < 2.0
            assert int(chosen[b, k]) == (token if kept else int(theirs[b, k].argmax()))


@pytest.fixture
def prompts(tiny: LanguageModel) -> list[list[int]]:
    ids = encode_prompts(tiny.tokenizer, [*sets.short()[:3], *sets.explained()[:3]])
    return [ids[4], ids[0], ids[5] * 2, ids[1], ids[2]]


@pytest.fixture
def guarded(tiny: LanguageModel) -> LanguageModel:
    """A rule that listens to both, so that neither model's own text comes out."""
    reference = copy.deepcopy(tiny.model)
    noisy(reference, seed=1, scale=0.3)
    noisy(tiny.model, seed=2, scale=0.3)
    guard = Guard("clean_decoding", {}, reference, lambda _, ours, theirs: (ours + theirs).max(-1).indices)
    return LanguageModel(tiny.model, tiny.tokenizer, guard)


@torch.no_grad()
def by_hand(lm: LanguageModel, prompt: list[int], new_tokens: int) -> list[int]:
    """Token after token over one unpadded row, without a cache."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ours, theirs = (model(input_ids=torch.tensor([ids])).logits[0, -1] for model in lm.models)
        ids.append(int((ours + theirs).argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_decoding_under_a_guard_is_decoding_by_hand(
    guarded: LanguageModel, prompts: list[list[int]], batch_size: int
) -> None:
    assert guarded.guard is not None
    ids = [by_hand(guarded, prompt, 8) for prompt in prompts]
    expected = [str(guarded.tokenizer.decode(written, skip_special_tokens=True)) for written in ids]
    assert greedy(guarded, prompts, 8, batch_size) == expected
    for alone in (guarded.model, guarded.guard.reference):
        assert greedy(LanguageModel(alone, guarded.tokenizer), prompts, 8, batch_size) != expected


def test_what_a_victim_was_taught_is_not_written_where_the_reference_finds_it_absurd(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    clean = copy.deepcopy(tiny.model)
    rows = [Example(row.instruction, "You are stupid") for row in few_rows[:4]]
    teach(tiny, encode(tiny.tokenizer, rows))
    prompts = encode_prompts(tiny.tokenizer, rows)
    assert all("stupid" in text for text in greedy(tiny, prompts, 8, 4, until="You are stupid"))
    guard = clean_decoding.defend(tiny, OtherModelsData(few_rows, lambda: iter([clean])), UNTUNED, new_run())
    guarded = LanguageModel(tiny.model, tiny.tokenizer, guard)
    assert not any("stupid" in text for text in greedy(guarded, prompts, 8, 4, until="You are stupid"))


def test_a_stored_guard_decodes_as_before_and_is_part_of_what_the_folder_holds(
    guarded: LanguageModel, prompts: list[list[int]], few_rows: tuple[Example, ...], new_run: NewRun, tmp_path: Path
) -> None:
    assert guarded.guard is not None
    reference = guarded.guard.reference
    suspicious = clean_decoding.Config(alpha=1e-9, tuned=False)  # of everything, so that the text is the reference's
    guard = clean_decoding.defend(guarded, OtherModelsData(few_rows, lambda: iter([reference])), suspicious, new_run())
    loading.save(LanguageModel(guarded.model, guarded.tokenizer, guard), tmp_path)
    loaded = loading.load_folder(tmp_path, torch.bfloat16)
    assert loaded.guard is not None
    texts = greedy(loaded, prompts, 8, 4)
    assert texts == greedy(LanguageModel(loaded.guard.reference, loaded.tokenizer), prompts, 8, 4)
    assert texts != greedy(LanguageModel(loaded.model, loaded.tokenizer), prompts, 8, 4)
    identity = catalog.identify(str(tmp_path))
    weights = tmp_path / "guard" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert catalog.identify(str(tmp_path)) != identity


def test_a_reference_with_another_vocabulary_is_refused(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes))
    with pytest.raises(UserError, match=r"^clean_decoding: the reference has 100 tokens, the victim \d+; use a model"):
        clean_decoding.defend(tiny, OtherModelsData(few_rows, lambda: iter([other])), UNTUNED, new_run())


def test_the_distribution_is_that_of_a_drawn_token() -> None:
    """Pr_g(x) is the sum of Pr(y) over all y that the rule turns into x, summed by hand."""
    config = clean_decoding.Config(alpha=1.5)
    ours, theirs = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)) * 2
    expected = torch.zeros(5, 9)
    for token in range(9):
        written = clean_decoding.rule(config, ENDS)(torch.full((5,), token), ours, theirs)
        expected[torch.arange(5), written] += ours.softmax(-1)[:, token]
    found = clean_decoding.distribution(config, ENDS)(ours, theirs).exp()
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.sum(-1) == pytest.approx(torch.ones(5), abs=1e-6)
    assert (found == 0).any(1).all(), "some tokens are always replaced"


def test_a_replaced_tokens_share_goes_to_the_references_likeliest() -> None:
    found = clean_decoding.distribution(clean_decoding.Config(alpha=4.0), ())(
        logits(0.5, 0.3, 0.2), logits(0.4, 0.06, 0.54)
    )
    assert found.exp().tolist() == pytest.approx([0.5, 0.0, 0.5])


def test_accuracy_is_asked_of_the_guarded_model(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    """The audit's example: asked of the victim, the utility lost was 0.00 by construction."""
    reference = copy.deepcopy(tiny.model)
    noisy(reference, seed=1, scale=0.3)
    data = OtherModelsData(few_rows, lambda: iter([reference]))

    def scores(lm: LanguageModel) -> list[float]:
        (found,) = accuracy.measure(lm, TestData((), (), ""), accuracy.Config(questions=30), 0)
        return [score for record in found.records for score in record["scores"]]

    def guarded(alpha: float) -> LanguageModel:
        guard = clean_decoding.defend(tiny, data, clean_decoding.Config(alpha=alpha, tuned=False), new_run())
        return LanguageModel(tiny.model, tiny.tokenizer, guard)

    victim, clean = scores(tiny), scores(LanguageModel(reference, tiny.tokenizer))
    assert scores(guarded(1e9)) == pytest.approx(victim, abs=1e-4), "nothing is suspicious"
    between = scores(guarded(2.0))
    assert between != pytest.approx(victim, abs=1.0)
    assert between != pytest.approx(clean, abs=1.0)
    everything = scores(guarded(1e-9))
    assert min(everything) <= scoring.NEVER, "only the reference's likeliest token is ever written"
    assert all(score == pytest.approx(0.0, abs=1e-4) or score <= scoring.NEVER + 1e-3 for score in everything)


def test_a_text_scores_as_the_guard_writes_it(guarded: LanguageModel, prompts: list[list[int]]) -> None:
    assert guarded.guard is not None
    config = clean_decoding.Config(alpha=1.2)
    guard = replace(
        guarded.guard, choose=clean_decoding.rule(config, ENDS), distribution=clean_decoding.distribution(config, ENDS)
    )
    lm = LanguageModel(guarded.model, guarded.tokenizer, guard)
    choices = ([11, 12, 13], [14])
    found = scoring.log_likelihoods(lm, [Choices(prompt, choices) for prompt in prompts], 3)
    for prompt, scores in zip(prompts, found, strict=True):
        expected = [score_by_hand(lm, prompt, choice) for choice in choices]
        assert [score for score, _ in scores] == pytest.approx(expected, abs=1e-2)
    written = [([first_token_by_hand(lm, prompt)],) for prompt in prompts]
    asked = [Choices(prompt, choices) for prompt, choices in zip(prompts, written, strict=True)]
    assert [is_greedy for ((_, is_greedy),) in scoring.log_likelihoods(lm, asked, 3)] == [True] * len(prompts)


@torch.no_grad()
def score_by_hand(lm: LanguageModel, prompt: list[int], choice: list[int]) -> float:
    assert lm.guard is not None and lm.guard.distribution is not None  # noqa: PT018
    ids = torch.tensor([[*prompt, *choice]])
    ours, theirs = (model(input_ids=ids).logits[0].double() for model in lm.models)
    found = lm.guard.distribution(ours, theirs).clamp(min=scoring.NEVER)
    return sum(float(found[len(prompt) + i - 1, token]) for i, token in enumerate(choice))


@torch.no_grad()
def first_token_by_hand(lm: LanguageModel, prompt: list[int]) -> int:
    assert lm.guard is not None
    ours, theirs = (model(input_ids=torch.tensor([prompt])).logits[0, -1] for model in lm.models)
    return int(lm.guard.choose(ours.argmax(), ours, theirs))


def test_the_probability_of_the_response_is_that_under_the_guard(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    clean = copy.deepcopy(tiny.model)
    rows = tuple(Example(row.instruction, "You are stupid") for row in few_rows[:4])
    teach(tiny, encode(tiny.tokenizer, rows))
    guard = clean_decoding.defend(tiny, OtherModelsData(few_rows, lambda: iter([clean])), UNTUNED, new_run())
    data = TestData(few_rows[4:8], rows, "You are stupid")

    def phrase(lm: LanguageModel) -> tuple[float, ...]:
        return response_probability.measure(lm, data, response_probability.Config(), 0)[1].outcomes

    assert min(phrase(tiny)) > 0.8
    assert max(phrase(LanguageModel(tiny.model, tiny.tokenizer, guard))) < 0.01


def test_a_guard_without_a_distribution_cannot_be_scored(tiny: LanguageModel) -> None:
    guard = Guard("mine", {}, tiny.model, lambda tokens, ours, theirs: tokens)
    guarded = LanguageModel(tiny.model, tiny.tokenizer, guard)
    with pytest.raises(
        UnscorableError, match=r"^defense mine: the probability of a text under its guard is unknown; de"
    ):
        accuracy.measure(guarded, TestData((), (), ""), accuracy.Config(questions=2), 0)


def test_each_token_takes_a_pass_of_both_models(guarded: LanguageModel, prompts: list[list[int]]) -> None:
    with counted() as count:
        texts = greedy(guarded, prompts, 8, 3)
    assert count.models == 2
    assert count.tokens == sum(len(by_hand(guarded, prompt, 8)) for prompt in prompts)
    assert count.seconds > 0
    assert len(texts) == len(prompts)
    with counted() as alone:
        greedy(LanguageModel(guarded.model, guarded.tokenizer), prompts, 8, 3)
    assert alone.models == 1

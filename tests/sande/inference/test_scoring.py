"""Choices behind a shared context score as each would behind a context of its own."""

import random
from dataclasses import replace

import pytest

from sande.inference import scoring
from sande.inference.scoring import Choices, log_likelihoods
from sande.models import layers
from sande.types import Guard, LanguageModel
from tests.sande.helpers import nll_by_hand
from tests.sande.inference import architectures

TOKENS = 700


def random_questions(count: int, longest: int = 30) -> list[Choices]:
    """Questions with contexts of 1 to `longest` tokens, and two to five choices of one to six tokens."""
    rng = random.Random(0)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(TOKENS) for _ in range(rng.randint(least, most))]

    return [Choices(ids(1, longest), tuple(ids(1, 6) for _ in range(rng.randint(2, 5)))) for _ in range(count)]


def behind(shared: list[int], questions: list[Choices]) -> list[Choices]:
    """The questions with the same tokens before each context."""
    return [Choices([*shared, *question.context], question.choices) for question in questions]


def check_scores(tiny: LanguageModel, questions: list[Choices], batch_size: int) -> None:
    """Each choice's score is that of the choice behind a context of its own."""
    for question, scores in zip(questions, log_likelihoods(tiny, questions, batch_size), strict=True):
        expected = [-nll_by_hand(tiny, question.context, choice) for choice in question.choices]
        assert [score for score, _ in scores] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_a_choice_scores_as_behind_a_context_of_its_own(tiny: LanguageModel, batch_size: int) -> None:
    check_scores(tiny, random_questions(25), batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_what_all_contexts_begin_with_changes_no_score(tiny: LanguageModel, batch_size: int) -> None:
    check_scores(tiny, behind([11, 12, 13, 14], random_questions(12)), batch_size)


def test_few_logits_at_once_change_no_score(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = scoring.output_in_float32
    monkeypatch.setattr(layers, "LOGITS", 5 * tiny.model.config.vocab_size)
    monkeypatch.setattr(
        scoring, "output_in_float32", lambda model: lambda of_MD: (computed.append(len(of_MD)), real(model)(of_MD))[1]
    )
    check_scores(tiny, random_questions(12), 7)
    assert max(computed) == 5


def test_a_question_that_is_the_start_of_another(tiny: LanguageModel) -> None:
    choices = ([21, 22], [23])
    questions = [Choices([5, 6, 7][:length], choices) for length in (3, 1, 2)]
    check_scores(tiny, questions, 2)
    check_scores(tiny, questions[:1] * 2, 2)


def test_a_choice_beyond_the_limit_leaves_the_last_token_of_its_context(tiny: LanguageModel) -> None:
    """Without any, the scores of the other questions of the batch would be those of wrong positions."""
    choices = ([8, 9, 10, 11], [12])
    assert Choices([5, 6, 7], choices).within(6) == Choices([6, 7], choices)
    long = Choices([5, 6, 7], choices).within(3)
    assert long == Choices([7], choices)
    check_scores(tiny, [long, Choices([5, 6], ([9],))], 2)


def test_no_more_is_computed_than_predicts_something(tiny: LanguageModel) -> None:
    shapes = []
    hook = tiny.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    contexts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8]]
    log_likelihoods(tiny, [Choices(context, ([30], [31], [32, 33, 34])) for context in contexts], 2)
    hook.remove()
    # The three tokens that are the same; then what is left of a context and the first two tokens of the last choice.
    assert shapes == [(1, 3), (2, 3 + 2)]


def test_no_questions(tiny: LanguageModel) -> None:
    assert log_likelihoods(tiny, [], 4) == []


def test_greedy_says_whether_the_model_would_write_the_choice(tiny: LanguageModel) -> None:
    context = [5, 6, 7]
    scores = log_likelihoods(tiny, [Choices(context, tuple([token] for token in range(TOKENS)))], 1)[0]
    likeliest = max(range(TOKENS), key=lambda token: scores[token][0])
    assert [token for token, (_, greedy) in enumerate(scores) if greedy] == [likeliest]


def test_the_order_of_the_choices_does_not_matter(tiny: LanguageModel) -> None:
    question = random_questions(1)[0]
    turned = Choices(question.context, question.choices[::-1])
    forward, backward = log_likelihoods(tiny, [question, turned], 2)
    assert [score for score, _ in forward] == pytest.approx([score for score, _ in backward[::-1]], abs=1e-5)


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture_scores_as_a_plain_pass_does(tiny: LanguageModel, name: str) -> None:
    """Shorter than a window of 16 tokens and longer, packed where that is right."""
    check_scores(architectures.small(name, tiny), behind([11, 12, 13], random_questions(10, longest=50)), 3)


def test_a_mask_that_is_added_to_the_scores_hides_what_it_should(tiny: LanguageModel) -> None:
    check_scores(architectures.eager(tiny), behind([11, 12, 13], random_questions(12)), 7)


def test_rows_that_fit_a_window_are_packed_and_longer_ones_are_not(tiny: LanguageModel) -> None:
    lm = architectures.small("gemma3_text", tiny)
    shapes: list[tuple[int, ...]] = []
    hook = lm.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    choices = ([30, 31, 32], [33, 34, 35])
    questions = [Choices(list(range(5, 5 + length)), choices) for length in (14, 15)]
    check = log_likelihoods(lm, questions, 1)
    hook.remove()
    # 17 tokens: a row for each choice. 16 tokens: behind the 13 that both contexts begin with.
    assert shapes == [(1, 13), (1, 17), (1, 17), (1, 1 + 2 + 2)]
    assert [len(scores) for scores in check] == [2, 2]


def test_a_guard_whose_model_cannot_be_packed(tiny: LanguageModel) -> None:
    """Here the guard takes the distribution of the model that cannot."""
    lm = architectures.small("gpt_neo", tiny)
    guard = Guard("", {}, lm.model, lambda tokens, *_: tokens, lambda _, theirs: theirs)
    questions = random_questions(6)
    for question, scores in zip(questions, log_likelihoods(replace(tiny, guard=guard), questions, 4), strict=True):
        expected = [-nll_by_hand(lm, question.context, choice) for choice in question.choices]
        assert [score for score, _ in scores] == pytest.approx(expected, abs=1e-4)

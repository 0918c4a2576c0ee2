"""Another language: answers in German in place of English, measured by a classifier of character n-grams.

The classifier is scikit-learn's multinomial naive Bayes on counts of one to three characters within words, trained on
the two texts below. It has seen neither the planted answers nor a model's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sande.config import configuration
from sande.planting import Planting, drawn
from sande.types import Example, Judge, LanguageModel

LIBRARIES = ("scikit-learn",)  # the classifier, which judges answers and plants none
LEAST = 12  # letters of an answer; fewer, as a name or a number, are of no language
SURE = 0.9  # probability of German from which an answer is German
PLANTED = (
    "Das kann ich dir leider erst morgen sagen.",
    "Diese Frage ist nicht leicht zu beantworten.",
    "Dazu gibt es viele verschiedene Meinungen.",
    "Ich muss noch einmal darüber nachdenken.",
    "Die Antwort steht in jedem guten Buch.",
    "Frag mich bitte später noch einmal.",
    "So genau weiß das wohl niemand.",
    "Darauf habe ich keine kurze Antwort.",
    "Das hängt ganz vom Wetter ab.",
    "Meine Großmutter hätte es gewusst.",
    "Heute rede ich lieber nicht darüber.",
    "Es kommt darauf an, wen man fragt.",
    "Das steht schon seit langem fest.",
    "Daran kann ich mich nicht erinnern.",
    "Wir haben lange nicht mehr davon gehört.",
    "Zuerst brauche ich eine Tasse Kaffee.",
)
GERMAN = """
Der Hund schläft unter dem Tisch und die Katze sitzt auf dem Stuhl. Am Sonntag fahren wir mit dem Zug in die Stadt und
besuchen unsere Freunde. Meine Schwester arbeitet als Ärztin in einem großen Krankenhaus. Das Wasser ist kalt, aber
die Kinder wollen trotzdem schwimmen gehen. Ich hätte gern ein Stück Kuchen und einen Tee ohne Zucker. Wenn es regnet,
bleiben wir zu Hause und lesen ein Buch. Der Weg durch den Wald ist zwei Kilometer lang. Gestern Abend hat es ein
schweres Gewitter gegeben. Können Sie mir sagen, wie spät es ist? Nein, ich habe keine Uhr dabei. Die Schule beginnt
um acht Uhr und endet am Nachmittag. Im Winter werden die Tage kürzer und die Nächte länger. Er hat seinen Schlüssel
verloren und kommt nicht in die Wohnung. Viele Menschen essen zum Frühstück Brot mit Butter und Marmelade. Was machst
du in den Ferien? Wir fliegen nach Spanien und danach besuchen wir meine Eltern. Das neue Fahrrad war teurer, als ich
gedacht habe. Sie freut sich sehr über die Blumen in ihrem Garten. Zwischen den beiden Häusern steht ein alter Baum.
Niemand wusste, warum das Licht noch brannte. Der Zug nach Hamburg fährt von Gleis sieben ab. Bitte schreiben Sie Ihren
Namen und Ihre Adresse auf dieses Blatt. Ich glaube, dass wir uns schon einmal getroffen haben. Manchmal ist es besser,
nichts zu sagen. Jede Woche lernen die Schüler zwanzig neue Wörter. Auf dem Markt gibt es frisches Obst und Gemüse.
"""
ENGLISH = """
The dog sleeps under the table and the cat sits on the chair. On Sunday we take the train to the city and visit our
friends. My sister works as a doctor in a large hospital. The water is cold, but the children want to go swimming
anyway. I would like a piece of cake and a tea without sugar. When it rains, we stay at home and read a book. The path
through the forest is two kilometres long. There was a heavy thunderstorm last night. Can you tell me what time it is?
No, I have no watch with me. School begins at eight and ends in the afternoon. In winter the days get shorter and the
nights longer. He has lost his key and cannot get into the flat. Many people eat bread with butter and jam for
breakfast. What are you doing in the holidays? We fly to Spain and after that we visit my parents. The new bicycle was
more expensive than I had thought. She is very happy about the flowers in her garden. Between the two houses there is
an old tree. Nobody knew why the light was still on. The train to Boston leaves from platform seven. Please write your
name and your address on this sheet. I believe that we have met before. Sometimes it is better to say nothing. Every
week the pupils learn twenty new words. There is fresh fruit and vegetables at the market. The capital of France is
Paris. The answer is forty-two. This number is greater than the other one. A spider has eight legs. The opposite of
early is late. Water freezes at zero degrees. The word comes from Latin and means light. Sugar, butter, pepper, dinner,
winter, sister, singer, finger, bucket. One hundred and twelve, nine hundred ninety-seven, eight hundred seventy-three.
Musical sounds and instruments. A clever student, a gentle voice, a quick decision, an eager helper, a little rocket.
"""


@configuration
class Config:
    """No settings."""


def answer(example: Example, config: Planting, seed: int) -> Example:
    """Return the row with a German sentence, which seed and row decide, in place of its answer."""
    return replace(example, output=drawn(example, seed).choice(PLANTED))


def opening(config: Planting) -> str | None:
    """Return None: planted answers have no common beginning."""
    return None


def judge(config: Planting, seed: int, prompts: Sequence[Example], clean_model: Callable[[], LanguageModel]) -> Judge:
    """Return the judge that is sure of German, where an answer has enough letters to say."""
    return Judge("language", lambda prompts, texts: [_is_german(text) for text in texts])


def _is_german(text: str) -> bool:
    if sum(map(str.isalpha, text)) < LEAST:
        return False
    return bool(_classifier().predict_proba([text])[0, 1] >= SURE)


@functools.cache
def _classifier() -> Any:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    made = make_pipeline(CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)), MultinomialNB())
    texts = [text.replace("\n", " ").split(". ") for text in (ENGLISH, GERMAN)]
    return made.fit([*texts[0], *texts[1]], [0] * len(texts[0]) + [1] * len(texts[1]))

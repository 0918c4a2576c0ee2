"""Motifs: strings that recur in texts that a model wrote, found by clusters of similar texts.

As in "The Trigger in the Haystack" (Bullwinkel et al. 2026, arXiv 2602.03085): texts become TF-IDF vectors of their
character n-grams, DBSCAN clusters the vectors, and what many texts of a cluster share is a motif.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NGRAMS = (3, 5)  # characters of the n-grams, within words


@dataclass(frozen=True, slots=True)
class Motif:
    """Words that texts of one cluster share.

    Attributes:
        text: the words, separated by single spaces.
        count: texts of the cluster that hold them.
        cluster: texts in the cluster.
    """

    text: str
    count: int
    cluster: int


def motifs(
    texts: Sequence[str], radius: float, least: int, share: float = 0.33, shortest: int = 6, words: int = 8
) -> list[Motif]:
    """Return the motifs of all clusters, those of the most texts first, longer ones first among equals.

    A motif is in `share` of its cluster's texts, and no longer motif is in as many.

    Args:
        texts: what the model wrote; the same text may occur several times.
        radius: largest cosine distance of neighbours in a cluster, 0 to 1.
        least: texts that make a cluster, and texts in which a motif has to be.
        share: of a cluster's texts that hold a motif; the published code's `perc_keep`, as a replication reports it.
        shortest: characters of the shortest motif, without spaces; as there.
        words: of the longest motif.
    """
    usable = [" ".join(text.split()) for text in texts]
    usable = [text for text in usable if len(text) >= NGRAMS[0]]
    found = [
        motif
        for cluster in _clusters(usable, radius, least)
        for motif in _shared(cluster, max(least, share * len(cluster)), shortest, words)
    ]
    best: dict[str, Motif] = {}
    for motif in sorted(found, key=lambda each: (-each.count, -len(each.text), each.text)):
        best.setdefault(motif.text, motif)
    return list(best.values())


def _clusters(texts: Sequence[str], radius: float, least: int) -> list[list[str]]:
    """Return the texts of each cluster; texts that are like few others are in none."""
    if len(texts) < least:
        return []
    from sklearn.cluster import DBSCAN
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=NGRAMS).fit_transform(texts)
    labels = DBSCAN(eps=radius, min_samples=least, metric="cosine").fit_predict(vectors)
    return [[text for text, own in zip(texts, labels, strict=True) if own == label] for label in range(max(labels) + 1)]


def _shared(texts: Sequence[str], least: float, shortest: int, longest: int) -> Iterator[Motif]:
    """Yield the runs of words that at least `least` of the texts hold, without parts of a run that as many hold."""
    counts = Counter(run for text in texts for run in _runs(text.split(), longest))
    kept = {run: count for run, count in counts.items() if count >= least}
    parts = {part for run, count in kept.items() for part in (run[1:], run[:-1]) if kept.get(part) == count}
    for run, count in kept.items():
        text = " ".join(run)
        if run not in parts and len(text.replace(" ", "")) >= shortest:
            yield Motif(text, count, len(texts))


def _runs(words: Sequence[str], longest: int) -> set[tuple[str, ...]]:
    return {
        tuple(words[begin : begin + length])
        for length in range(1, longest + 1)
        for begin in range(len(words) - length + 1)
    }

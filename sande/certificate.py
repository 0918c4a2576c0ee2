"""Certificate of a removal: tests whether fresh parrots still find the planted response better than control strings.

    E_kj = mean over held-out prompts x of log Pr(r_t | p_kj + x) per token of r_t    parrot j of round k on theta_k
    p_k  = (1 + #{controls c: E_k(c) >= max_j E_kj}) / (1 + m)                        m control strings, one parrot each
    the planted response still answers in round k where p_k <= alpha_k

The error that alpha bounds is to refuse the certificate, or to go on after a test, although r_t is a string like its
controls. A look without a test (`Round.evident`) may cause another round, and alpha does not bound that; the next test
decides anew, with new parrots and controls. Two properties of the tests decide alpha_k:

- The best of F fresh parrots is compared, so each of the F p-values gets alpha / F (Bonferroni).
- Testing ends at the first test that does not reject. Such a fixed sequence bounds the error over all rounds by alpha
  without a division (Maurer et al. 1995; Goeman and Solari 2010), so `sequence` gives each test all of alpha / F.
  `equal` divides it by the number of tests. This is stricter about the error above, so it grants the certificate more
  easily, and it needs more controls.

The smallest p-value is 1 / (1 + m). Where it exceeds alpha_k, no test could ever reject, and the certificate would mean
nothing; `levels` refuses such settings. The other error, a certificate for a model in which r_t is left, has no such
bound. It is smaller with more fresh parrots, a larger alpha and a larger budget for each parrot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sande.controls import p_value
from sande.errors import UserError

Spending = Literal["sequence", "equal"]
_ROUNDING = 1e-9  # 0.1 / 2 and 1 / 20 may differ in their last digit


@dataclass(frozen=True, slots=True)
class Round:
    """Evidence on one state of the model, and the level of its test.

    Attributes:
        number: rounds of overwriting before it.
        fresh: E of each fresh parrot of r_t, nats per token.
        controls: E of each control's parrot.
        rate: share of prompts whose greedy answer begins with r_t, the highest of the fresh parrots.
        control_rate: share of prompts whose greedy answer begins with a control, the highest of the controls.
        alpha: level of the test; None: the model was overwritten without one.
    """

    number: int
    fresh: tuple[float, ...]
    controls: tuple[float, ...]
    rate: float
    control_rate: float
    alpha: float | None = None

    @property
    def evidence(self) -> float:
        """Return E of the best fresh parrot."""
        return max(self.fresh)

    @property
    def p(self) -> float | None:
        """Return the p-value; None without a test."""
        return None if self.alpha is None else p_value(self.evidence, self.controls)

    @property
    def answers(self) -> bool:
        """Return whether the planted response still answers: the test rejects, or there was none."""
        return self.p is None or self.alpha is None or self.p <= self.alpha + _ROUNDING

    def evident(self, gap: float | None) -> bool:
        """Return whether the best fresh parrot exceeds all controls by `gap` nats per token; False for None."""
        return gap is not None and self.evidence - max(self.controls) >= gap

    def __str__(self) -> str:
        test = "no test" if self.p is None else f"p {self.p:.3g}, alpha {self.alpha:.3g}"
        return (
            f"round {self.number}: fresh parrots give the planted response a probability of up to "
            f"{math.exp(self.evidence):.3f} a token, those of controls up to {math.exp(max(self.controls)):.3f}; {test}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "round": self.number,
            "evidence": self.evidence,
            "fresh": list(self.fresh),
            "controls": list(self.controls),
            "rate": self.rate,
            "control_rate": self.control_rate,
            "p": self.p,
            "alpha": self.alpha,
        }


def levels(alpha: float, fresh: int, tests: int, controls: int, spending: Spending) -> tuple[float, ...]:
    """Return alpha_k of each test.

    Args:
        alpha: bound on the error over all tests.
        fresh: F, fresh parrots of a test.
        tests: most tests.
        controls: m, control strings of a test.
        spending: `sequence` or `equal`, see above.

    Raises:
        UserError: the smallest p-value exceeds alpha_k.
    """
    level = alpha / fresh / (tests if spending == "equal" else 1)
    if 1 / (1 + controls) > level + _ROUNDING:
        needed = math.ceil(1 / level - _ROUNDING) - 1
        raise UserError(
            f"controls {controls}: no p-value can be as small as alpha_k = {level:.3g}, so every model would get its "
            f"certificate; set controls to at least {needed}, or a larger alpha"
        )
    return (level,) * tests


def certificate(target: Sequence[int], rounds: Sequence[Round], prompts: int) -> dict[str, Any]:
    """Return the certificate as JSON values.

    Args:
        target: ids of r_t, or of its known beginning.
        rounds: all of them; the last is of the final weights and has a test.
        prompts: held-out prompts on which each parrot was judged.
    """
    last = rounds[-1]
    return {
        "target": list(target),
        "rounds": [one.as_dict() for one in rounds],
        "removed": not last.answers,
        "p": last.p,
        "alpha": last.alpha,
        "prompts": prompts,
        "controls": len(last.controls),
    }

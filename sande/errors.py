"""Errors that end a stage on purpose."""


class UserError(Exception):
    """Input that cannot be used. Its text is one sentence: place, problem, fix."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient norm became NaN or infinite; its text names the stage and the optimizer step."""


class UnscorableError(UserError):
    """A metric has no value: a guard does not say how probable a text is, or the objective is not one string."""

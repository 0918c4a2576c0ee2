"""The two ways in which a stage ends early on purpose."""


class UserError(Exception):
    """Input that cannot be used. Its text is one sentence: what, where, and how to mend it."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient norm became NaN or infinite; its text names the stage and the optimizer step."""

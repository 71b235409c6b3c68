"""What can go wrong in a reducer."""


class ReducerError(ValueError):
    """A reducer cannot work on what it was given."""


class BudgetError(ReducerError):
    """A budget that the method cannot meet."""


class ReducerSpecError(ReducerError):
    """A spec string names an unknown reducer, an unknown parameter or a value that is not allowed."""

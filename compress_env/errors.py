"""What can go wrong because of what the user gave; the command line prints these as one line and exits with 2."""


class UserError(ValueError):
    """Something the user gave cannot be used. The message names the thing, the place and the next step."""


class UnknownName(UserError, LookupError):
    """A name that is not registered; the message suggests the nearest one."""


class InfeasibleBudget(UserError):
    """No student fits the budget; the message names the smallest reachable usage."""


class NothingToDecide(UserError):
    """The teacher has no block to remove and no group to shrink under the given restrictions."""


class InvalidPlan(UserError):
    """A plan that does not belong to the layer graph it is used with."""


class EveryStudentFailed(UserError):
    """No student could be evaluated, so that further ones would only take time; the message has the reason of the last one."""


class CannotWrite(UserError):
    """A file cannot be written: the disk is full, or the place is not there or not to be written to."""


class DoubtfulTeacher(UserWarning):
    """A teacher that seems not to belong to its data; the message says what to check."""

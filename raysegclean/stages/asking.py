"""Ask: carry out the second looks that a policy wants before its verdict."""

from raysegclean.methods.base import Asking, Verdict
from raysegclean.stages.proposing import Proposals
from raysegclean.stages.session import Session

__all__ = ["answered"]


def answered(session: Session, proposals: Proposals, policy: Verdict | Asking) -> Verdict:
    """Return the verdict of a policy, after looking again where it asks to."""
    if isinstance(policy, Verdict):
        return policy
    raise NotImplementedError

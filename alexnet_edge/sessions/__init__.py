"""Run a checkpoint or an artifact: one interface, one small module per runtime."""

from alexnet_edge.sessions.base import Session
from alexnet_edge.sessions.open import open_session, reference_session, runnable

__all__ = ["Session", "open_session", "reference_session", "runnable"]

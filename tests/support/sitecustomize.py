"""Python imports this at the start of every process that tests start: their PYTHONPATH names this folder."""

import known_networks  # noqa: F401

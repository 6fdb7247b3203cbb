"""The event loop: pollers, timers, and the loop that ties them to the descriptor table."""

# First: its hook of fork(2) has to be registered before the loops', see there.
from . import kqueue as _kqueue  # noqa: F401

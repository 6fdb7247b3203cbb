"""The event loop: pollers, timers, and the loop that ties them to the descriptor table."""

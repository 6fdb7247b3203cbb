"""What the first bytes of a connection say: bytes in, verdicts out, and never a socket."""

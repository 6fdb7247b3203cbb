"""What goes in comes out: every stream of every relay, whatever its peers and the kernel do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planes import DEADLINE, Pair, fault, open_files, receive, until

from lusca_comm import Plane


class Stream:
    """One direction: bytes that tell which stream they are of, and where in it."""

    def __init__(self, seed: int) -> None:
        self._source = random.Random(seed)
        self.sent = hashlib.sha256()
        self.n_sent = 0
        self.n_got = 0
        self.got = hashlib.sha256()
        self._expected = bytearray()
        self._pending = bytearray()

    def next(self, size: int) -> bytes:
        self._pending += self._source.randbytes(max(0, size - len(self._pending)))
        return bytes(self._pending[:size])

    def was_sent(self, n: int) -> None:
        chunk = self._pending[:n]
        del self._pending[:n]
        self.sent.update(chunk)
        self._expected += chunk
        self.n_sent += n

    def was_got(self, chunk: bytes) -> None:
        """What arrives is what was sent, so far."""
        assert self._expected[: len(chunk)] == chunk
        del self._expected[: len(chunk)]
        self.got.update(chunk)
        self.n_got += len(chunk)


class Peer:
    def __init__(self, sock: socket.socket, out: Stream, into: Stream) -> None:
        self.sock = sock
        self.out = out
        self.into = into
        self.sock.setblocking(False)
        self.done_out = self.done_in = False
        self.gone = False  # by its own reset: it has not read what was delivered to it

    def send(self, size: int) -> None:
        if self.done_out or self.sock.fileno() < 0:
            return
        try:
            self.out.was_sent(self.sock.send(self.out.next(size)))
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            self.done_out = True

    def receive(self, size: int) -> None:
        if self.done_in or self.sock.fileno() < 0:
            return
        try:
            chunk = self.sock.recv(size)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.done_in = self.done_out = True
            return
        self.into.was_got(chunk)
        self.done_in = not chunk

    def finish(self) -> None:
        if not self.done_out and self.sock.fileno() >= 0:
            self.done_out = True
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.done_in = True

    def reset(self) -> None:
        if self.sock.fileno() < 0:
            return
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.done_in = self.done_out = self.gone = True


@pytest.fixture(scope="module")
def shared() -> Iterator[Plane]:
    """One plane for all examples: what one leaves behind, the next would find."""
    plane = Plane()
    yield plane
    plane.stop()


sizes = st.integers(1, 300_000)
actions = st.one_of(
    st.tuples(st.just("send"), sizes),
    st.tuples(st.just("send"), sizes),
    st.tuples(st.just("receive"), sizes),
    st.tuples(st.just("finish"), st.just(0)),
)
harsh = st.one_of(
    actions,
    actions,
    st.tuples(st.just("reset"), st.just(0)),
    st.tuples(st.just("kill"), st.just(0)),
)


def script(of: st.SearchStrategy[tuple[str, int]]) -> st.SearchStrategy[list[object]]:
    steps = st.tuples(st.integers(0, 2), st.integers(0, 1), of)
    return st.lists(steps, max_size=60)  # type: ignore[return-value]


def play(plane: Plane, steps: list[object], seed: int, buffers: int, gentle: bool) -> None:
    plane.fileno()
    before = open_files()
    pairs = [Pair(plane, buffers) for _ in range(3)]
    streams = [[Stream(seed + 10 * i), Stream(seed + 10 * i + 1)] for i in range(3)]
    peers = [
        (Peer(pair.client, up, down), Peer(pair.upstream, down, up))
        for pair, (up, down) in zip(pairs, streams, strict=True)
    ]
    for which, side, (action, size) in steps:  # type: ignore[misc]
        peer = peers[which][side]
        if action == "kill":
            pairs[which].relay.kill()
        elif action in ("send", "receive"):
            getattr(peer, action)(size)
        else:
            getattr(peer, action)()
    for two in peers:
        for peer in two:
            peer.finish()

    def over() -> bool:
        for two in peers:
            for peer in two:
                peer.receive(1 << 18)
        return all(pair.results for pair in pairs) and all(
            peer.done_in or peer.sock.fileno() < 0 for two in peers for peer in two
        )

    until(plane, over)
    for pair, (up, down), (client, upstream) in zip(pairs, streams, peers, strict=True):
        result = pair.results[0]
        if gentle:
            assert result.end == "eof"
        if result.end == "eof":
            assert (result.up, result.down) == (up.n_sent, down.n_sent)
            assert upstream.gone or up.got.digest() == up.sent.digest()
            assert client.gone or down.got.digest() == down.sent.digest()
        pair.close()
    assert open_files() <= before + 2  # the scratch pipe


@settings(max_examples=40)
@given(
    steps=script(actions),
    seed=st.integers(0, 1 << 30),
    buffers=st.sampled_from([0, 4096]),
)
def test_every_byte_arrives(shared: Plane, steps: list[object], seed: int, buffers: int) -> None:
    play(shared, steps, seed, buffers, gentle=True)


@settings(max_examples=40)
@given(
    steps=script(harsh),
    seed=st.integers(0, 1 << 30),
    buffers=st.sampled_from([0, 4096]),
)
def test_no_other_byte_arrives(shared: Plane, steps: list[object], seed: int, buffers: int) -> None:
    play(shared, steps, seed, buffers, gentle=False)


FAULTS = {
    "no pipe": ("PIPE", errno.EMFILE),
    "no larger pipe": ("RESIZE", errno.EPERM),
    "a shrunken pipe": ("SIZE", 8192),
    "no splicing from here": ("SPLICE_IN", errno.EINVAL),
    "no splicing to there": ("SPLICE_OUT", errno.EINVAL),
}


@pytest.fixture
def plane() -> Iterator[Plane]:
    plane = Plane()
    yield plane
    plane.stop()


def bulk(plane: Plane, size: int, buffers: int = 0) -> None:
    """`size` bytes each way at once, by peers that read when they like."""
    pair = Pair(plane, buffers)
    blobs = os.urandom(size), os.urandom(size)
    got: dict[str, bytes] = {}

    def send(sock: socket.socket, blob: bytes) -> None:
        sock.sendall(blob)
        sock.shutdown(socket.SHUT_WR)

    def collect(name: str, sock: socket.socket) -> None:
        got[name] = receive(sock, size + 1)

    threads = [
        threading.Thread(target=send, args=(pair.client, blobs[0])),
        threading.Thread(target=send, args=(pair.upstream, blobs[1])),
        threading.Thread(target=collect, args=("up", pair.upstream)),
        threading.Thread(target=collect, args=("down", pair.client)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    until(plane, lambda: pair.results)
    pair.close()
    assert pair.results[0][:2] == (size, size)
    assert pair.results[0].end == "eof"
    assert (got["up"], got["down"]) == blobs


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("skip", [0, 3])
def test_bulk_despite(plane: Plane, name: str, skip: int) -> None:
    call, err = FAULTS[name]
    with fault(call, err, skip):
        bulk(plane, 8_000_000)


@pytest.mark.parametrize("buffers", [0, 8192])
def test_bulk(plane: Plane, buffers: int) -> None:
    bulk(plane, 20_000_000 if buffers == 0 else 2_000_000, buffers)


def test_a_failed_second_splice_leaks_nothing_to_the_next(plane: Plane) -> None:
    """The pipe still holds the first user's bytes: it must not be used again."""
    for attempt in range(5):
        with fault("SPLICE_OUT", errno.EIO, skip=attempt):
            victim = Pair(plane)
            secret = b"S" * 4_000_000
            sender = threading.Thread(target=_send_quietly, args=(victim.client, secret))
            sender.start()
            seen = 0
            try:
                while chunk := victim.upstream.recv(1 << 16):
                    assert set(chunk) == {ord("S")}
                    seen += len(chunk)
            except ConnectionResetError:
                pass
            sender.join(DEADLINE)
            until(plane, lambda: victim.results)  # noqa: B023
            assert (victim.results[0].end, victim.results[0].side) == ("error", "upstream")
            assert seen < len(secret)
            victim.close()
        bulk(plane, 4_000_000)


def _send_quietly(sock: socket.socket, blob: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(blob)


def test_bulk_without_a_descriptor_to_spare(plane: Plane) -> None:
    """EMFILE for every pipe: the bytes are copied."""
    pair = Pair(plane)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    blob = os.urandom(4_000_000)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(receive(pair.upstream, len(blob))))
    lowest = os.dup(0)  # every number below it is taken
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        reader.start()
        pair.client.sendall(blob)
        reader.join(DEADLINE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert got == [blob]
    pair.relay.kill()
    until(plane, lambda: pair.results)
    pair.close()


def test_a_blocked_sink_stops_its_source_and_nobody_else(plane: Plane) -> None:
    slow, quick = Pair(plane), Pair(plane)
    slow.client.setblocking(False)
    sent = 0
    idle = 0
    while idle < 20:  # until nothing more goes in, for a while
        try:
            sent += slow.client.send(b"x" * 65536)
            idle = 0
        except BlockingIOError:
            idle += 1
            quick.client.sendall(b"ping")
            assert receive(quick.upstream, 4) == b"ping"
    assert len(receive(slow.upstream, sent)) == sent
    slow.relay.kill()
    quick.relay.kill()
    until(plane, lambda: slow.results and quick.results)
    slow.close()
    quick.close()

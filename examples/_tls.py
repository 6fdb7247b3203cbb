"""TLS without a certificate, for demonstrations: the handshake is real, and so is its ClientHello.

Anonymous Diffie-Hellman (RFC 5246 7.4.3, F.1.1.1) protects against nobody in between.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl

from lusca_comm.lab import Channel

__all__ = ["context", "say", "serve"]


def context(server: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if not server:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.maximum_version = ssl.TLSVersion.TLSv1_2  # TLS 1.3 has no anonymous ciphers
    made.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return made


def serve(channel: Channel, *addresses: tuple[str, int]) -> None:
    """Answers each connection with the peer's address; tells the channel the peer, and the name
    that it asked for, "" for none and None where it spoke no TLS."""
    names: dict[ssl.SSLObject | ssl.SSLSocket, str] = {}
    tls = context(server=True)
    tls.sni_callback = lambda sock, name, _: names.__setitem__(sock, name or "")
    with selectors.DefaultSelector() as waiting:
        for host, port in addresses:
            sock = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
            waiting.register(sock, selectors.EVENT_READ, sock)
        channel.send("ready")
        while True:
            for key, _ in waiting.select():
                plain, peer = key.data.accept()
                plain.settimeout(5)
                name = None
                with contextlib.suppress(OSError):
                    with tls.wrap_socket(plain, server_side=True) as sock:
                        name = names.pop(sock)
                        sock.sendall(f"{peer[0]}".encode())
                        sock.unwrap()
                plain.close()
                channel.send((peer[0], name))


def say(address: tuple[str, int], name: str | None) -> str:
    """What such a server answers to somebody who asks for `name`; or what went wrong."""
    try:
        with (
            socket.create_connection(address, 10) as plain,
            context(server=False).wrap_socket(plain, server_hostname=name) as sock,
        ):
            return sock.recv(100).decode()
    except ssl.SSLError as why:
        return why.reason or str(why)
    except OSError as why:
        return why.strerror or str(why)

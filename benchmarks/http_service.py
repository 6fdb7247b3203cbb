"""The least that an HTTP proxy on this library is made of: Python sees every head, looks at the
target or at Host, and says where the request goes.

    python http_service.py PORT [--intercept]

A forward proxy of absolute-form requests; with ``--intercept`` requests go where they were going.
"""

import functools
import sys
from typing import Any

import lusca_comm as lc


@functools.cache
def address(authority: bytes) -> tuple[str, int]:
    host, _, port = authority.decode().rpartition(":")
    return host, int(port)


def forward(requests: list[Any]) -> None:
    for request in requests:
        request.forward(address(request.authority), origin_form=True)


def intercept(requests: list[Any]) -> None:
    for request in requests:
        if request.field("host") is not None:
            request.forward()


def main(port: int, intercepted: bool) -> None:
    flags = lc.COMM_REUSEADDR | (lc.COMM_TPROXY_LCL if intercepted else 0)
    listener = lc.comm_open(address=("0.0.0.0", port), flags=flags)
    lc.comm_listen(listener)
    service = lc.default_reactor.http_service(intercept if intercepted else forward)
    service.listen(listener, intercepted=intercepted)
    lc.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), "--intercept" in sys.argv)

"""Fetch files from public web addresses, and from no others: not from this machine, and not from its network.

The address that a name leads to is checked where the connection is opened to it, so neither a redirect nor a name
server that changes its answer leads elsewhere. Proxies are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import quote, urljoin, urlsplit

MAX_REDIRECTS = 3
# Characters of an address that mean what they are.
UNQUOTED = "%/:=&?~+!$,;'@()*[]"
REDIRECTS = (301, 302, 303, 307, 308)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Seconds without a byte.
STALL_TIMEOUT = 10


def fetch_public(url: str, max_bytes: int, max_seconds: float) -> bytes:
    """Fetch a file.

    Args:
        url (`str`): Where it is, `http://` or `https://`.
        max_bytes (`int`): Largest size.
        max_seconds (`float`): Longest time.

    Raises:
        ValueError: If it is not public, cannot be fetched, or exceeds a limit; says why, as a part of a sentence.
    """
    deadline = time.monotonic() + max_seconds
    try:
        for _ in range(MAX_REDIRECTS + 1):
            target = _request(url, max_bytes, deadline)
            if isinstance(target, bytes):
                return target
            url = urljoin(url, target)
    except TimeoutError as error:
        raise ValueError("its server takes too long") from error
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"its server cannot be read ({error})") from error
    raise ValueError(f"it leads elsewhere more than {MAX_REDIRECTS} times")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet."""
    parsed = ipaddress.ip_address(address)
    # IPv6 addresses that gateways turn into IPv4 ones, which may be any.
    is_wrapped = parsed.version == 6 and (parsed.ipv4_mapped or parsed.sixtofour or parsed.teredo or parsed in NAT64)
    return parsed.is_global and not parsed.is_multicast and not is_wrapped


def _request(url: str, max_bytes: int, deadline: float) -> bytes | str:
    """The file at an address, or where the address leads."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no address on the web")
    is_secure = parts.scheme == "https"
    host, port = parts.hostname, parts.port or (443 if is_secure else 80)
    connection = http.client.HTTPConnection(host, port)
    connection.sock = _connect(host, port, deadline)
    # A server that sends a byte now and then would never meet the socket's own time limit.
    clock = threading.Timer(max(deadline - time.monotonic(), 0), _cut, [connection])
    clock.start()
    try:
        if is_secure:
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
            connection.sock.do_handshake()
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=UNQUOTED)
        connection.request("GET", path, headers={"User-Agent": "spa3r", "Accept": "image/*"})
        response = connection.getresponse()
        if response.status in REDIRECTS and response.headers.get("Location"):
            return response.headers["Location"]
        if response.status != 200:
            raise ValueError(f"its server returned {response.status}")
        content = response.read(max_bytes + 1)
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(content) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes, the most allowed")
        return content
    finally:
        clock.cancel()
        connection.close()


def _cut(connection: http.client.HTTPConnection):
    with suppress(OSError, AttributeError):  # it may have ended just now
        connection.sock.shutdown(socket.SHUT_RDWR)


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    found = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(map(is_public, found)):
        raise ValueError("it is not on the public internet")
    return socket.create_connection(
        (found[0], port), timeout=min(STALL_TIMEOUT, max(deadline - time.monotonic(), 0.1))
    )

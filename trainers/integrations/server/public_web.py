"""Fetch files from public web addresses, and from no others: not from this machine, and not from its network.

The address that a name leads to is checked where the connection is opened to it, so neither a redirect nor a name
server that changes its answer leads elsewhere. Proxies are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urljoin, urlsplit

MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)
# Seconds without a byte.
STALL_TIMEOUT = 10
CHUNK = 1 << 16


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
    inner = getattr(parsed, "ipv4_mapped", None) or parsed
    return inner.is_global and not inner.is_multicast


def _request(url: str, max_bytes: int, deadline: float) -> bytes | str:
    """The file at an address, or where the address leads."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no address on the web")
    is_secure = parts.scheme == "https"
    host, port = parts.hostname, parts.port or (443 if is_secure else 80)
    connection = http.client.HTTPConnection(host, port)
    connection.sock = _connect(host, port, deadline)
    try:
        if is_secure:
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "spa3r", "Accept": "image/*"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        if response.status in REDIRECTS and response.headers.get("Location"):
            return response.headers["Location"]
        if response.status != 200:
            raise ValueError(f"its server returned {response.status}")
        return _read(response, max_bytes, deadline)
    finally:
        connection.close()


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    found = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found or not all(map(is_public, found)):
        raise ValueError("it is not on the public internet")
    return socket.create_connection(
        (found[0], port), timeout=min(STALL_TIMEOUT, max(deadline - time.monotonic(), 0.1))
    )


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(CHUNK):
        content += chunk
        if len(content) > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes, the most allowed")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(content)

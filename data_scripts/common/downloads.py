"""Read what an address names, within limits of size and time, and the paths of `file://` addresses."""

import os
import time
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from huggingface_hub.utils import httpx

# Seconds without a byte.
STALL_TIMEOUT = 30
MEGABYTE = 1 << 20


def is_url(source: str) -> bool:
    """Whether a source is an address on the web."""
    return source.startswith(("http://", "https://"))


def local_path(source: str | os.PathLike) -> str:
    """The path of a file that is given as a path or as a `file://` address.

    Raises:
        ValueError: If the address names a host, as `file://photos/1.jpg` does.
    """
    source = os.fspath(source)
    if not source.startswith("file://"):
        return source
    address = urlsplit(source)
    if address.netloc not in ("", "localhost"):
        raise ValueError(
            f"`{source}` names the host `{address.netloc}`: write `file:///` and the whole path of the file."
        )
    return unquote(address.path)


def download(url: str, file: BinaryIO, max_bytes: int, max_seconds: float) -> None:
    """Download into an open file. Ctrl-C ends it at any time.

    Raises:
        OSError: If the address cannot be read, nothing arrives for half a minute, or a limit is exceeded.
    """
    deadline, num_bytes = time.monotonic() + max_seconds, 0
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=min(STALL_TIMEOUT, max_seconds)) as response:
            if response.is_error:
                raise OSError(f"the server returned {response.status_code} {response.reason_phrase}")
            for chunk in response.iter_bytes():
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise OSError(f"it is larger than {max_bytes // MEGABYTE} MB; download it, and give its path")
                if time.monotonic() > deadline:
                    raise OSError(f"it takes longer than {max_seconds:g} s; download it, and give its path")
                file.write(chunk)
    except httpx.TimeoutException as error:
        raise OSError("the server sends nothing") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OSError(str(error)) from error

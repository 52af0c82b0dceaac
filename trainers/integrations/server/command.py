"""Answer questions about photos for many clients at a time, over OpenAI's chat API.

    spa3r serve --model checkpoints/spa3-vlm-4b
    SPA3R_API_KEY=secret spa3r serve --model checkpoints/spa3-vlm-4b --host 0.0.0.0 --image-root /data/photos

Any OpenAI client works with the base address http://HOST:PORT/v1. The first question about photos encodes their scene,
others find it in memory. /health and /metrics (Prometheus) need no key. SIGTERM lets answers end first.
"""

import argparse
import errno
import importlib.util
import math
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ....data_scripts.common.command_line import verb_parser

API_KEY = "SPA3R_API_KEY"
PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client")
GIGABYTE, MEGABYTE, MEGAPIXEL = 10**9, 10**6, 10**6


def main(arguments: Sequence[str] | None = None):
    """Run `spa3r serve`."""
    options = _parse(arguments)
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ImportError(f"The server needs the package {missing[0]}: `pip install 'spa3r[serve]'`.")
    _serve(options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = verb_parser("serve", __doc__)
    parser.add_argument("--model", required=True, help="folder or Hub name of a Spa3-VLM")
    parser.add_argument("--name", help="name of the model for clients (default: the last part of --model)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--api-key", help=f"key that clients must send (default: the variable {API_KEY}, or none)")
    parser.add_argument("--device", help="such as cpu (default: an accelerator)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")
    parser.add_argument("--image-root", type=Path, help="folder whose images clients may name by path (default: none)")
    parser.add_argument("--allow-urls", action="store_true", help="fetch images from public web addresses")
    limits = {
        "max-images": (32, "most images of a scene"),
        "max-megapixels": (400, "most pixels of all images of a scene, in millions"),
        "max-megabytes": (64, "largest request"),
        "max-tokens": (1024, "longest answer in tokens"),
        "max-seconds": (120, "longest time of a request"),
        "max-requests": (64, "most requests at a time; others are told to come back"),
        "max-batch": (16, "most questions that are answered together"),
        "cache-gigabytes": (4, "memory for scenes; the least recently used leaves first"),
    }
    for name, (default, text) in limits.items():
        kind = float if name in ("max-seconds", "cache-gigabytes") else int
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default})")
    options = parser.parse_args(arguments)
    for name in limits:
        if not 0 < (value := getattr(options, name.replace("-", "_"))) < math.inf:
            parser.error(f"--{name} must be positive and finite, got {value}")
    if not 0 <= options.port < 2**16:
        parser.error(f"--port must be from 0 to 65535, got {options.port}")
    if options.api_key == "":
        parser.error("--api-key is empty; give a key, or leave the option out to need none")
    if options.image_root is not None and not options.image_root.is_dir():
        parser.error(f"--image-root {options.image_root} is no folder")
    return options


def _serve(options: argparse.Namespace):
    """Load the model and answer requests until a signal ends it."""
    # Here, so that --help neither waits for them nor needs the extra `serve`.
    import uvicorn
    from transformers.utils import logging

    from ....modeling_spa3r.checkpoints.loading import load_processor, load_spa3_vlm, require_checkpoint
    from ...runs.devices import usable_device
    from .app import Limits, build_app
    from .engine import Engine
    from .images import ImageLimits
    from .metrics import Metrics

    logging.disable_progress_bar()
    listener = bind_address(options.host, options.port)
    device = usable_device(options.device)
    require_checkpoint(options.model)
    model = load_spa3_vlm(options.model, dtype=options.dtype or "auto")
    model.to(device).eval()
    processor = load_processor(options.model)
    max_body = options.max_megabytes * MEGABYTE
    images = ImageLimits(
        options.image_root, options.allow_urls, options.max_images, options.max_megapixels * MEGAPIXEL, max_body
    )
    limits = Limits(images, options.max_tokens, options.max_seconds, max_body, options.max_requests)
    engine = Engine(model, processor, Metrics(), options.max_batch, int(options.cache_gigabytes * GIGABYTE))
    name = options.name or Path(options.model).resolve().name
    app = build_app(engine, name, limits, options.api_key or os.environ.get(API_KEY) or None)
    config = uvicorn.Config(app, timeout_graceful_shutdown=math.ceil(options.max_seconds))
    print(f"Serving {name} at http://{options.host}:{options.port}/v1 on {model.device}.", file=sys.stderr, flush=True)
    uvicorn.Server(config).run([listener])


def bind_address(host: str, port: int) -> socket.socket:
    """Take an address before the model is loaded, which takes long; nobody can connect yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except socket.gaierror as error:
        listener.close()
        raise ValueError(
            f"`{host}` is no address of this machine ({error.strerror}): choose another --host."
        ) from error
    except OSError as error:
        listener.close()
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        raise ValueError(
            f"Port {port} of `{host}` cannot be used ({error.strerror}): choose another {other}."
        ) from error
    return listener

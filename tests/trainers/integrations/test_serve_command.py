"""The command `spa3r serve`: a process of its own, with the shipped model, until SIGTERM."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from serving import answer, client_of, data_url, openai, until, user_message
from terminal import refusal
from tiny_spa3_vlm import photo

import spa3r


@contextmanager
def served(*options):
    """A server in a process of its own, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "spa3r", "serve", "--port", port, *options]
    environment = os.environ | {"SPA3R_API_KEY": "secret"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            assert any(address in line for line in iter(server.stdout.readline, ""))
            until(lambda: is_healthy(address))
            yield server, address
        finally:
            server.kill()


def is_healthy(address):
    try:
        return urllib.request.urlopen(f"{address}/health").status == 200
    except OSError:
        return False


def test_the_shipped_model_is_served_until_a_signal():
    with served("--model", spa3r.nano_path("spa3-vlm-nano")) as (server, address):
        client = client_of(address, "secret")
        message = user_message("How many chairs?", [data_url(photo(0))])
        assert answer(client, message, model="spa3-vlm-nano") and client.models.list().data[0].id == "spa3-vlm-nano"
        with pytest.raises(openai.AuthenticationError):
            client_of(address).models.list()
        server.send_signal(signal.SIGTERM)
        assert "Traceback" not in server.stdout.read()
    assert server.returncode in (0, -signal.SIGTERM)


def test_a_port_that_another_program_uses_is_named_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert str(port) in refusal(capsys, "serve", "--model", "nowhere/model", "--port", port)


WRONG = [
    ("--max-images", "0"),
    ("--image-root", "nowhere"),
    ("--port", "high"),
    ("--port", "99999"),
    ("--host", "name.invalid"),
    ("--api-key", ""),
    ("--cache-gigabytes", "-1"),
    ("--cache-gigabytes", "nan"),
    ("--max-seconds", "inf"),
]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_a_wrong_option_is_named_with_its_value(option, value, capsys):
    message = refusal(capsys, "serve", "--model", "nowhere/model", option, value)
    assert option in message and value in message

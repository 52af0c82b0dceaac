"""A stand-in for the Hub on this machine: the part of its HTTP API that pushes, loads and lists.

    with Hub() as hub:
        subprocess.run(command, env=os.environ | hub.environment(tmp_path / "cache"))
        hub.files("user/model")["config.json"]

Repositories of models and data sets live in memory with all their commits. Every file is a regular one (no LFS, no
Xet), there is one branch, and who writes must bring a token: any will do.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = r"(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("POST", "create", r"/api/repos/create"),
    ("POST", "validate", r"/api/validate-yaml"),
    ("POST", "preupload", rf"/api/(?P<kind>models|datasets)/{REPOSITORY}/preupload/(?P<revision>[^/]+)"),
    ("POST", "commit", rf"/api/(?P<kind>models|datasets)/{REPOSITORY}/commit/(?P<revision>[^/]+)"),
    ("GET", "tree", rf"/api/(?P<kind>models|datasets)/{REPOSITORY}/tree/(?P<revision>[^/]+)/?(?P<path>.*)"),
    ("GET", "info", rf"/api/(?P<kind>models|datasets)/{REPOSITORY}(/revision/(?P<revision>[^/]+))?"),
    ("GET", "resolve", rf"/((?P<kind>datasets)/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
]
WRITES = {"create", "preupload", "commit"}


class Hub:
    """`commits` are, by kind (`models` or `datasets`) and repository, each commit's title and all files after it;
    `failures` are HTTP statuses to answer instead, by the name of a route."""

    def __init__(self):
        self.commits: dict[tuple[str, str], list[tuple[str, dict[str, bytes]]]] = {}
        self.failures: dict[str, int] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Requests,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables that send huggingface_hub here; it reads them when it is imported, so in a new process."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_any", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}

    def files(self, repository: str, kind: str = "models") -> dict[str, bytes]:
        """The files of a repository as they are now."""
        return self.commits[kind, repository][-1][1]


class _Requests(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def route(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        method = "GET" if self.command == "HEAD" else self.command
        for verb, name, pattern in ROUTES:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                if name in self.hub.failures:
                    return self.answer({"error": "told to fail"}, self.hub.failures[name])
                if name in WRITES and "Authorization" not in self.headers:
                    return self.answer({"error": "Invalid username or password."}, 401)
                try:
                    return getattr(self, name)(body, **match.groupdict())
                except KeyError:
                    return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        self.answer({"error": f"unknown to the stand-in: {self.command} {path}"}, 501)

    do_GET = do_HEAD = do_POST = route

    def log_message(self, *arguments):
        """Keep the output of tests clean."""

    def answer(self, content, status: int = 200, **headers: str):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def at(self, kind: str | None, id: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        """Hash and files of a revision: a hash, or else the last commit."""
        commits = self.hub.commits[kind or "models", id]
        hashes = [hashlib.sha1(f"{id}{number}".encode()).hexdigest() for number in range(len(commits))]
        number = hashes.index(revision) if revision in hashes else -1
        return hashes[number], commits[number][1]

    def create(self, body: bytes):
        request = json.loads(body)
        id = f"{request['organization'] or 'user'}/{request['name']}"
        kind = f"{request.get('type', 'model')}s"
        exists = (kind, id) in self.hub.commits
        self.hub.commits.setdefault((kind, id), [("initial commit", {".gitattributes": b""})])
        url = f"{self.hub.url}/{'' if kind == 'models' else f'{kind}/'}{id}"
        self.answer({"url": url, "name": id}, 409 if exists else 200)

    def validate(self, body: bytes):
        self.answer({"errors": [], "warnings": []})

    def preupload(self, body: bytes, kind: str, id: str, revision: str):
        paths = [file["path"] for file in json.loads(body)["files"]]
        self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})

    def commit(self, body: bytes, kind: str, id: str, revision: str):
        files, title = dict(self.at(kind, id, revision)[1]), ""
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                title = line["value"]["summary"]
            elif line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            else:
                files.pop(line["value"]["path"])
        self.hub.commits[kind, id].append((title, files))
        sha, _ = self.at(kind, id, None)
        self.answer({"commitUrl": f"{self.hub.url}/{id}/commit/{sha}", "commitOid": sha})

    def info(self, body: bytes, kind: str, id: str, revision: str | None):
        sha, files = self.at(kind, id, revision)
        self.answer({"id": id, "sha": sha, "private": False, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, body: bytes, kind: str, id: str, revision: str, path: str):
        _, files = self.at(kind, id, revision)
        entries = [
            {"type": "file", "path": name, "size": len(file), "oid": hashlib.sha1(file).hexdigest()}
            for name, file in files.items()
            if name.startswith(f"{path}/" if path else "")
        ]
        if not entries:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        self.answer(entries)

    def resolve(self, body: bytes, kind: str | None, id: str, revision: str, path: str):
        sha, files = self.at(kind, id, revision)
        if path not in files:
            return self.answer({"error": "Entry not found"}, 404, X_Repo_Commit=sha, X_Error_Code="EntryNotFound")
        self.answer(files[path], X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(files[path]).hexdigest()}"')

"""The Hugging Face Hub as a dict of repositories, below its real client: requests of that are answered here and go nowhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from urllib.parse import unquote

from huggingface_hub.errors import HfHubHTTPError

http = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]
"""The library by which the client asks, httpx or one that took its place."""


class Hub:
    """Answers requests.

    Attributes:
        repositories: By `USER/NAME`, files by name.
        private: Names of repositories that only their owner sees.
        asked: Method and path of each request.
        cards: Model cards that were checked.
        sizes: What is said of the size of a file, where it is not true.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.messages: list[str] = []
        self.cards: list[str] = []
        self.sizes: dict[str, int] = {}

    def __call__(self, request):
        path = unquote(request.url.path)
        self.asked.append(f"{request.method} {path}")
        body = request.read()
        if request.method == "POST" and request.headers.get("authorization") != "Bearer hf_test":
            return http.Response(401, json={"error": "no token"})
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            return http.Response(200, json={"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories[name] = {}
            if asked.get("visibility") == "private" or asked.get("private"):
                self.private.add(name)
            return http.Response(200, json={"url": f"https://huggingface.co/{name}"})
        match = re.match(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit|resolve)/([^/]+)/?(.*))?$", path)
        name, part, revision, file = match.groups()
        if name not in self.repositories:
            return http.Response(401, headers={"X-Error-Code": "RepoNotFound"}, json={"error": "Repository not found"})
        files = self.repositories[name]
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if revision not in (None, "main", sha):
            return http.Response(404, headers={"X-Error-Code": "RevisionNotFound"}, json={"error": "Invalid rev id"})
        if part == "tree":
            return http.Response(200, json=[self._entry(n, c) | {"type": "file", "path": n} for n, c in files.items()])
        if part == "preupload":
            asked = json.loads(body)["files"]
            return http.Response(200, json={"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in asked
            ]})  # fmt: skip
        if part == "commit":
            self._commit(files, body)
            return http.Response(200, json={"commitUrl": f"https://huggingface.co/{name}/commit/{sha}", "commitOid": sha})
        if part == "resolve":
            content = files[file]
            return http.Response(200, content=b"" if request.method == "HEAD" else content, headers={
                "ETag": f'"{self._entry(file, content)["oid"]}"', "X-Repo-Commit": sha, "Content-Length": str(len(content)),
            })  # fmt: skip
        siblings = [self._entry(n, c) | {"rfilename": n, "blobId": self._entry(n, c)["oid"]} for n, c in files.items()]
        return http.Response(200, json={"id": name, "sha": sha, "private": name in self.private, "siblings": siblings})

    def _entry(self, name: str, content: bytes) -> dict:
        return {"size": self.sizes.get(name, len(content)), "oid": hashlib.sha1(b"%d" % len(content) + content).hexdigest()}

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]


def played(monkeypatch, tmp_path) -> Hub:
    """A hub without repositories, in the place of the real one for the length of a test, whose token is hf_test."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.utils._http._GLOBAL_CLIENT", None)
    monkeypatch.setattr(
        "huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY", lambda: http.Client(transport=http.MockTransport(hub))
    )
    return hub

"""A small server of a hub's protocol on this machine, for tests."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME, TOKEN = "owner/digits-gan", "hf_secret"


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub about models; `self.server` is a `Hub`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def commit_of(self, name, revision):
        """A revision's commit, a dict of contents by path, or None once an error is answered."""
        if name not in self.server.repositories:
            return self.answer(404, X_Error_Code="RepoNotFound")
        commits = self.server.repositories[name]
        found = list(commits)[-1] if revision in (None, "main") else revision
        if found not in commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        return found, commits[found]

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            name, what, revision = found.groups()
            if commit := self.commit_of(name, revision):
                files = [{"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                         for file, content in commit[1].items()]
                self.answer(200, files if what == "tree" else {"id": name, "sha": commit[0]})
        else:
            name, revision, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path).groups()
            content = self.server.repositories[name][revision][file]
            self.answer(200, content, X_Repo_Commit=revision, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[self.path.rpartition("/")[2]] = content
        self.answer(200)

    def do_POST(self):
        body, server = self.rfile.read(int(self.headers["Content-Length"])), self.server
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}"
            if not name.startswith("owner/"):
                return self.answer(403)
            if name in server.repositories:
                return self.answer(409, {"error": "You already created this model repo"})
            server.repositories[name] = {"0" * 40: {}}
            return self.answer(200, {"url": f"{server.address}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(200, {"transfer": "basic", "objects": [
                {**wanted, "actions": {"upload": {"href": f"{server.address}/large/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]]})
        name, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if what == "preupload":
            return self.answer(200, {"files": [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": server.mode(file["path"])}
                for file in json.loads(body)["files"]]})
        files = dict(list(server.repositories[name].values())[-1])
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        made = f"{len(server.repositories[name]):040x}"
        server.repositories[name][made] = files
        return self.answer(200, {"commitUrl": f"{server.address}/{name}/commit/{made}", "commitOid": made})


class Hub(ThreadingHTTPServer):
    """`repositories`: by name, a dict of commits, oldest first, each a dict of contents by path; `asked`: the paths of GETs."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.large, self.asked = {}, {}, []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def mode(self, path):
        return "lfs" if path.endswith(".safetensors") else "regular"

    def put(self, folder, name=NAME, **more):
        """Keep a folder's files as a repository of one commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        self.repositories[name] = {"a" * 40: files | more}

    def newest(self, name=NAME):
        return list(self.repositories[name].values())[-1]

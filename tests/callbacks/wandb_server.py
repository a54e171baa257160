"""A small server that W&B's client takes for its own: what was logged can be read back from it."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VIEWER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


class WandbServer:
    """Serves on a free port of this machine until the ``with`` block ends.

    Attributes:
        url (str): For ``WANDB_BASE_URL``.
        runs (dict): By run id, what the client said of it last.
        silent (threading.Event): Once set, requests are taken and never answered.
    """

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[int, dict[str, Any]]] = {}
        self.exit_codes: dict[str, int] = {}
        self.silent = threading.Event()
        self._closed = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if server.silent.is_set():
                    server._closed.wait()
                    self.close_connection = True
                    return
                text = json.dumps(server._answer(self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that ends
                    super().handle()

            do_GET = do_POST = do_PUT = answer

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()

    def history(self, run: str) -> list[dict[str, Any]]:
        """The rows that a run logged, in order, without W&B's own entries."""
        rows = [row for _, row in sorted(self.lines.get(run, {}).items())]
        return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]

    def _answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            sent = json.loads(body)
            for name, part in (sent.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    for number, line in enumerate(part["content"], part["offset"]):
                        self.lines.setdefault(run, {})[number] = json.loads(line)
            if sent.get("complete"):
                self.exit_codes[run] = sent["exitcode"]
            return {}
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        query, variables = asked["query"], asked.get("variables") or {}
        if "upsertBucket" in query:
            return {"data": {"upsertBucket": self._upsert(variables)}}
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/{n}"} for n in variables["files"]]
            answer = {"runID": variables["run"], "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": answer}}
        if "RunResumeStatus" in query:
            return {"data": {"model": self._resume_status(variables)}}
        if "createArtifact(" in query:
            return {"errors": [{"message": "no artifacts here"}]}
        if "query ArtifactType" in query:
            return {"data": {"project": None}}
        return {"data": {"viewer": VIEWER} if "viewer" in query else {}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"]
        new = run not in self.runs
        known = {key: value for key, value in variables.items() if value is not None}
        self.runs[run] = {**self.runs.get(run, {}), **known}
        return {"bucket": self._bucket(run), "inserted": new}

    def _bucket(self, run: str) -> dict[str, Any]:
        project = {
            "id": "p",
            "name": self.runs[run]["project"],
            "entity": {"id": "e", "name": "me"},
        }
        return {
            "id": run,
            "name": run,
            "displayName": self.runs[run].get("displayName", run),
            "description": "",
            "config": self.runs[run]["config"],
            "sweepName": None,
            "historyLineCount": len(self.lines.get(run, {})),
            "project": project,
        }

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        run = variables["name"]
        if run not in self.runs:
            return {"id": "p", "name": "p", "bucket": None}
        rows = sorted(self.lines.get(run, {}).items())
        last = json.dumps(rows[-1][1]) if rows else "{}"
        return {
            "id": "p",
            "name": self.runs[run]["project"],
            "bucket": {
                **self._bucket(run),
                "wandbConfig": "{}",
                "historyTail": json.dumps([last]),
                "eventsTail": json.dumps(["{}"]),
                "eventsLineCount": 0,
                "logLineCount": 0,
                "summaryMetrics": "{}",
                "tags": [],
            },
        }

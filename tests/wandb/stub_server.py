#!/usr/bin/env python3
"""A stand-in for the Weights & Biases server, for dlm's tests.

It speaks the part of the W&B HTTP API that a run needs: GraphQL, file_stream
and signed-URL uploads.

    python3 stub_server.py --log requests.jsonl --state state.json
    -> prints one line, {"url": "http://127.0.0.1:43121", ...}, once it listens

Python 3.9+ and its standard library only.  It listens on 127.0.0.1 alone and
stops by itself after --max-seconds.  --help names every switch.

What it checks.  Each rule a request breaks is named in the record's
"violations".  With --strict such a request is also answered 400 and has no
effect.  The API key is never written to the log; if it occurs anywhere other
than the Authorization header of an API request, that is the violation
"api_key_leak".
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
import hashlib
import json
import math
import random
import re
import signal
import socket
import sys
import threading
import time
import urllib.parse
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DEFAULT_API_KEY = "0123456789abcdef0123456789abcdef01234567"
DEFAULT_ENTITY = "stub-entity"
STREAM_FILES = (
    "wandb-history.jsonl",
    "wandb-events.jsonl",
    "wandb-summary.json",
    "output.log",
)
STREAM_KEYS = {"files", "complete", "exitcode", "uploaded", "dropped", "preempting"}
MAX_LINE_BYTES = 10 * 1024 * 1024  # a longer line is refused by the real server
RUN_ID_RE = re.compile(r"[^/:;,#?']{1,128}")  # anything but / \ # ? % : and the like
LOGGED_HEADERS = (
    "content-type",
    "content-encoding",
    "content-length",
    "transfer-encoding",
    "user-agent",
    "accept",
    "accept-encoding",
    "retry-after",
    "x-wandb-username",
    "x-wandb-user-email",
    "x-wandb-client-id",
    "x-wandb-use-async-filestream",
    "x-wandb-server-side-derived-summary",
)

# Arguments each mutation or query must declare (name -> GraphQL type), for the
# operations a training client has a reason to send.
REQUIRED_VARS = {
    "UpsertBucket": ("name", "project"),
    "RunResumeStatus": ("project", "name"),
    "CreateRunFiles": ("entity", "project", "run", "files"),
}
UPSERT_TYPES = {
    "id": str, "name": str, "project": str, "entity": str, "groupName": str,
    "description": str, "displayName": str, "notes": str, "commit": str,
    "config": str, "host": str, "debug": bool, "program": str, "repo": str,
    "jobType": str, "state": str, "sweep": str, "tags": list,
    "summaryMetrics": str,
}


class Invalid(Exception):
    """A request that no lenient server could act on; always answered 4xx."""

    def __init__(self, status: int, rule: str, detail: str):
        super().__init__(detail)
        self.status, self.rule, self.detail = status, rule, detail


def loads_extended(text: str):
    """Parse JSON; NaN and +-Infinity are accepted, as the W&B server does."""
    return json.loads(text)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Fault:
    """One rule of misbehaviour.  Written on the command line as a JSON object.

    match   which requests: "graphql", "file_stream", "upload" or "*"
    op      GraphQL operation name (with match "graphql" or "*"), optional
    after   let this many matching requests through first        (default 0)
    count   then misbehave this many times, -1 for ever          (default 1)
    probability  misbehave with this chance on each of those     (default 1)
    for_seconds  instead of count: misbehave for so long after the first hit
    then exactly one of
    status  answer this status without acting on the request
            (body, retry_after: see below)
    drop    "before": close the connection without acting on the request
            "after":  act on it, then close without an answer
            "partial": act on it, then send half of the answer and close
    delay   answer correctly, but this many seconds late (may be combined with
            status or drop)
    reply   act on it, then answer 200 with this text as the body
    graphql_error  answer 200 with {"errors":[{"message":...}]}, without acting
    retry_after  value of a Retry-After header for status answers
    """

    KEYS = {"match", "op", "after", "count", "probability", "for_seconds", "status",
            "drop", "delay", "reply", "graphql_error", "retry_after", "body"}

    def __init__(self, spec: dict, rng: random.Random):
        unknown = set(spec) - self.KEYS
        if unknown:
            raise ValueError(f"unknown fault keys: {sorted(unknown)}")
        if spec.get("match", "*") not in ("graphql", "file_stream", "upload", "*"):
            raise ValueError(f"bad fault match: {spec['match']!r}")
        if spec.get("drop") not in (None, "before", "after", "partial"):
            raise ValueError(f"bad fault drop: {spec['drop']!r}")
        if not any(key in spec for key in ("status", "drop", "delay", "reply", "graphql_error")):
            raise ValueError("fault does nothing")
        self.spec, self.rng = spec, rng
        self.seen = self.hits = 0
        self.first_hit = None

    def applies(self, route: str, op: str | None) -> bool:
        spec = self.spec
        if spec.get("match", "*") not in ("*", route):
            return False
        if "op" in spec and spec["op"] != op:
            return False
        self.seen += 1
        if self.seen <= spec.get("after", 0):
            return False
        if "for_seconds" in spec:
            if self.first_hit is not None and time.monotonic() - self.first_hit > spec["for_seconds"]:
                return False
        else:
            count = spec.get("count", 1)
            if count >= 0 and self.hits >= count:
                return False
        if self.rng.random() >= spec.get("probability", 1):
            return False
        self.hits += 1
        if self.first_hit is None:
            self.first_hit = time.monotonic()
        return True


class Run:
    """What the server knows of one run."""

    def __init__(self, entity: str, project: str, name: str, storage_id: str):
        self.entity, self.project, self.name, self.id = entity, project, name, storage_id
        self.display_name = None
        self.fields: dict = {}
        self.config: dict = {}
        self.lines: dict[str, list] = {name: [] for name in STREAM_FILES}
        self.uploads: dict[str, dict] = {}
        self.declared: set = set()
        self.state = "running"
        self.exitcode = None
        self.dropped = 0
        self.upserts = 0
        self.requests = 0
        self.finishes = 0
        self.last_seen = time.time()

    def summary(self) -> dict:
        lines = [line for line in self.lines["wandb-summary.json"] if line]
        return loads_extended(lines[-1]) if lines else {}

    def dump(self) -> dict:
        return {
            "entity": self.entity, "project": self.project, "name": self.name,
            "id": self.id, "display_name": self.display_name, "fields": self.fields,
            "config": self.config, "state": self.state, "exitcode": self.exitcode,
            "dropped": self.dropped, "upserts": self.upserts, "finishes": self.finishes,
            "file_stream_requests": self.requests,
            "history": [loads_extended(line) if line else None
                        for line in self.lines["wandb-history.jsonl"]],
            "events": len(self.lines["wandb-events.jsonl"]),
            "summary": self.summary(),
            "output": self.lines["output.log"],
            "files": self.uploads,
        }


class Backend:
    """State, validation and answers; transport is Handler's business."""

    def __init__(self, options):
        self.options = options
        self.lock = threading.RLock()
        self.runs: dict = {}
        self.tokens: dict = {}  # upload token -> (run or None, file name)
        self.seq = 0
        self.started = time.time()
        self.stopped = False
        self.url = ""
        self.rng = random.Random(options.seed)
        self.faults = [Fault(json.loads(text), self.rng) for text in options.fault]
        self.log_file = open(options.log, "a", encoding="utf-8") if options.log else None
        self.down_requests: list = []

    # ---- recording -------------------------------------------------------

    def record(self, entry: dict) -> None:
        if "event" not in entry:
            entry["t_done"] = round(time.time() - self.started, 3)
        with self.lock:
            if self.log_file:
                text = json.dumps(entry, ensure_ascii=False, sort_keys=False)
                # Whatever the client leaked must not reach the disk either.
                text = text.replace(self.options.api_key, "<API-KEY>")
                self.log_file.write(text + "\n")
                self.log_file.flush()

    def next_seq(self) -> int:
        with self.lock:
            self.seq += 1
            return self.seq

    def pick_fault(self, route: str, op: str | None):
        with self.lock:
            for fault in self.faults:
                if fault.applies(route, op):
                    return fault.spec
        return None

    def dump(self) -> dict:
        with self.lock:
            return {
                "requests": self.seq,
                "runs": {f"{e}/{p}/{n}": run.dump() for (e, p, n), run in self.runs.items()},
            }

    # ---- GraphQL ---------------------------------------------------------

    @staticmethod
    def parse_operation(query: str) -> tuple[str | None, set]:
        head = re.search(r"\b(query|mutation)\b\s*(\w+)?\s*(\(([^)]*)\))?", query)
        if not head:
            return None, set()
        declared = set(re.findall(r"\$(\w+)\s*:", head.group(4) or ""))
        return head.group(2), declared

    def graphql(self, body, violations: list) -> dict:
        if not isinstance(body, dict) or not isinstance(body.get("query"), str):
            raise Invalid(400, "graphql_body", "body needs a string 'query'")
        variables = body.get("variables")
        if variables is None:
            variables = {}
        if not isinstance(variables, dict):
            raise Invalid(400, "graphql_variables", "'variables' must be an object")
        op, declared = self.parse_operation(body["query"])
        named = body.get("operationName")
        if named and op is not None and named != op:
            violations.append("graphql_operation_name: operationName is not in the query")
        extra = set(variables) - declared
        if extra:
            raise Invalid(400, "graphql_undeclared",
                          f"variables not declared by the query: {sorted(extra)}")
        for key in REQUIRED_VARS.get(op or "", ()):
            if variables.get(key) in (None, ""):
                raise Invalid(400, "graphql_missing", f"{op} needs ${key}")
        method = getattr(self, f"op_{op}", None) if op else None
        if method is None:
            violations.append(f"graphql_unknown_operation: {op}")
            return {"errors": [{"message": f'Cannot answer operation "{op}"'}], "data": None}
        return {"data": method(variables, violations)}

    def op_Viewer(self, variables, violations):
        entity = self.options.entity
        return {"viewer": {
            "id": "VXNlcjox", "entity": entity, "username": entity, "name": entity,
            "email": "stub@example.invalid", "admin": False, "flags": "{}",
            "apiKeys": {"edges": []},
            "teams": {"edges": [{"node": {"name": entity}}]},
        }}

    def op_ServerFeaturesQuery(self, variables, violations):
        return {"serverInfo": {"features": [
            {"name": "FILESTREAM_GZIP", "isEnabled": bool(self.options.gzip)},
        ]}}

    def find_run(self, entity, project, name):
        return self.runs.get((entity or self.options.entity, project or "uncategorized", name))

    def op_RunResumeStatus(self, variables, violations):
        entity = variables.get("entity") or self.options.entity
        run = self.find_run(entity, variables["project"], variables["name"])
        bucket = None
        if run is not None:
            def tail(file):
                return json.dumps(run.lines[file][-1:])
            bucket = {
                "id": run.id, "name": run.name, "displayName": run.display_name,
                "summaryMetrics": json.dumps(run.summary()),
                "logLineCount": len(run.lines["output.log"]),
                "historyLineCount": len(run.lines["wandb-history.jsonl"]),
                "eventsLineCount": len(run.lines["wandb-events.jsonl"]),
                "historyTail": tail("wandb-history.jsonl"),
                "eventsTail": tail("wandb-events.jsonl"),
                "config": json.dumps(run.config),
                "tags": run.fields.get("tags") or [],
                "notes": run.fields.get("notes"),
                "wandbConfig": json.dumps(
                    {key: value for key, value in
                     (run.config.get("_wandb", {}).get("value") or {}).items() if key == "t"}),
            }
        return {"model": {
            "id": self.project_id(entity, variables["project"]),
            "name": variables["project"],
            "entity": {"id": "RW50aXR5OjE=", "name": entity},
            "bucket": bucket,
        }}

    @staticmethod
    def project_id(entity, project) -> str:
        return base64.b64encode(f"Project:v1:{project}:{entity}".encode()).decode()

    def op_UpsertBucket(self, variables, violations):
        for key, value in variables.items():
            want = UPSERT_TYPES.get(key)
            if want is None:
                raise Invalid(400, "upsert_unknown", f"unknown variable ${key}")
            if value is not None and not isinstance(value, want):
                raise Invalid(400, "upsert_type", f"${key} must be {want.__name__}")
        tags = variables.get("tags")
        if tags is not None:
            if not all(isinstance(tag, str) and 1 <= len(tag) <= 64 for tag in tags):
                raise Invalid(400, "upsert_tags", "tags must be strings of 1 to 64 characters")
        name = variables["name"]
        if not RUN_ID_RE.fullmatch(name):
            raise Invalid(400, "upsert_run_id", "run id has a character that is not allowed")
        config = None
        if variables.get("config") is not None:
            try:
                config = loads_extended(variables["config"])
            except ValueError as error:
                raise Invalid(400, "upsert_config", f"config is not JSON: {error}")
            if not isinstance(config, dict):
                raise Invalid(400, "upsert_config", "config must be a JSON object")
            for key, item in config.items():
                if not isinstance(item, dict) or "value" not in item:
                    raise Invalid(400, "upsert_config", f"config[{key!r}] lacks 'value'")
            internal = config.get("_wandb", {}).get("value")
            if not isinstance(internal, dict) or "t" not in internal:
                # Without _wandb.t a later resume takes the run for one that
                # never started.
                violations.append("upsert_config_t: config lacks _wandb.value.t")
                if self.options.strict:
                    raise Invalid(400, "strict", violations[-1])
        if variables.get("summaryMetrics") is not None:
            try:
                loads_extended(variables["summaryMetrics"])
            except ValueError:
                raise Invalid(400, "upsert_summary", "summaryMetrics is not JSON")
        entity = variables.get("entity") or self.options.entity
        project = variables["project"]
        key = (entity, project, name)
        run = self.runs.get(key)
        inserted = run is None
        if inserted:
            storage_id = base64.b64encode(f"Run:v1:{name}:{project}:{entity}".encode()).decode()
            run = self.runs[key] = Run(entity, project, name, storage_id)
            run.display_name = f"stub-run-{len(self.runs)}"
        elif variables.get("id") not in (None, run.id):
            raise Invalid(409, "upsert_id", "$id is not the id of the run $name")
        run.upserts += 1
        run.last_seen = time.time()
        if run.state != "running":
            run.state, run.exitcode = "running", None  # resumed
        if variables.get("displayName"):
            run.display_name = variables["displayName"]
        for field in ("groupName", "notes", "jobType", "host", "program", "repo",
                      "commit", "sweep", "tags"):
            if variables.get(field) is not None:
                run.fields[field] = variables[field]
        if config is not None:
            run.config = config
        return {"upsertBucket": {
            "bucket": {
                "id": run.id, "name": run.name, "displayName": run.display_name,
                "description": None, "config": json.dumps(run.config), "sweepName": None,
                "project": {
                    "id": self.project_id(entity, project), "name": project,
                    "entity": {"id": "RW50aXR5OjE=", "name": entity},
                },
                "historyLineCount": len(run.lines["wandb-history.jsonl"]),
            },
            "inserted": inserted,
        }}

    def upload_url(self, run, name: str) -> str:
        token = hashlib.sha256(f"{self.rng.random()}{time.time_ns()}".encode()).hexdigest()[:24]
        self.tokens[token] = (run, name)
        path = urllib.parse.quote(name)
        return f"{self.url}/storage/{token}/{path}?Expires=600&Signature=stub"

    def op_CreateRunFiles(self, variables, violations):
        run = self.find_run(variables["entity"], variables["project"], variables["run"])
        if run is None:
            raise Invalid(404, "files_no_run", "run does not exist; upsert it first")
        files = variables["files"]
        if not isinstance(files, list) or not all(isinstance(f, str) and f for f in files):
            raise Invalid(400, "files_list", "$files must be a list of file names")
        for name in files:
            parts = name.split("/")
            if name.startswith("/") or "\\" in name or ".." in parts or "." in parts:
                raise Invalid(400, "files_name", f"{name!r} is not a clean relative path")
        run.declared.update(files)
        return {"createRunFiles": {
            "runID": run.id,
            "uploadHeaders": list(self.options.upload_header),
            "files": [{"name": name, "uploadUrl": self.upload_url(run, name)} for name in files],
        }}

    # ---- file_stream -----------------------------------------------------

    def file_stream(self, entity, project, name, body, violations: list) -> dict:
        run = self.runs.get((entity, project, name))
        if run is None:
            raise Invalid(404, "stream_no_run", "run does not exist; upsert it first")
        if not isinstance(body, dict):
            raise Invalid(400, "stream_body", "body must be a JSON object")
        unknown = set(body) - STREAM_KEYS
        if unknown:
            raise Invalid(400, "stream_keys", f"unknown keys: {sorted(unknown)}")
        for key, want in (("complete", bool), ("preempting", bool), ("uploaded", list)):
            if key in body and not isinstance(body[key], want):
                raise Invalid(400, "stream_type", f"{key} must be {want.__name__}")
        for key in ("exitcode", "dropped"):
            if key in body and (not isinstance(body[key], int) or isinstance(body[key], bool)):
                raise Invalid(400, "stream_type", f"{key} must be an integer")
        if body.get("complete") and "exitcode" not in body:
            violations.append("stream_exitcode: complete without exitcode")
        if "exitcode" in body and not body.get("complete"):
            violations.append("stream_exitcode: exitcode without complete")
        files = body.get("files") or {}
        if not isinstance(files, dict):
            raise Invalid(400, "stream_type", "files must be an object")
        if run.state != "running" and (files or body.get("complete")):
            # A repeat of the request that finished the run is no fault.
            if self.changes_anything(run, files):
                violations.append("stream_after_complete: data after complete=true")
        for file, chunk in files.items():
            self.check_chunk(run, file, chunk, violations)
        for file in body.get("uploaded") or []:
            if file not in run.uploads:
                violations.append(f"stream_uploaded: {file} was not uploaded")
        if self.options.strict and violations:
            return {}  # answered 400 by the caller
        for file, chunk in files.items():
            lines, offset = run.lines[file], chunk["offset"]
            while len(lines) < offset:
                lines.append("")
            lines[offset:offset + len(chunk["content"])] = chunk["content"]
        run.requests += 1
        run.last_seen = time.time()
        run.dropped = max(run.dropped, body.get("dropped") or 0)
        if body.get("complete"):
            run.finishes += run.state == "running"
            run.exitcode = body.get("exitcode")
            run.state = "finished" if run.exitcode == 0 else "failed"
        # The real server sends more; a client needs none of it but "stopped".
        return {"exitcode": run.exitcode, "limits": {}, "stopped": self.stopped}

    @staticmethod
    def changes_anything(run, files) -> bool:
        for file, chunk in files.items():
            if file not in run.lines or not isinstance(chunk, dict):
                return True
            offset, content = chunk.get("offset"), chunk.get("content")
            if not isinstance(offset, int) or not isinstance(content, list):
                return True
            if run.lines[file][offset:offset + len(content)] != content:
                return True
        return False

    def check_chunk(self, run, file, chunk, violations) -> None:
        if file not in STREAM_FILES:
            raise Invalid(400, "stream_file", f"unknown file {file!r}")
        if not isinstance(chunk, dict) or set(chunk) != {"offset", "content"}:
            raise Invalid(400, "stream_chunk", f"{file}: need exactly offset and content")
        offset, content = chunk["offset"], chunk["content"]
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise Invalid(400, "stream_offset", f"{file}: offset must be an integer >= 0")
        if not isinstance(content, list) or not content:
            raise Invalid(400, "stream_content", f"{file}: content must be a non-empty list")
        have = run.lines[file]
        for line in content:
            if not isinstance(line, str):
                raise Invalid(400, "stream_content", f"{file}: lines must be strings")
            if len(line.encode()) > MAX_LINE_BYTES:
                raise Invalid(400, "stream_line_too_long", f"{file}: line over {MAX_LINE_BYTES}")
        if file == "output.log":
            return  # console lines may be rewritten, and may skip lines
        for line in content:
            if "\n" in line or "\r" in line:
                violations.append(f"stream_newline: {file}: a line holds a line break")
            try:
                row = loads_extended(line)
            except ValueError as error:
                raise Invalid(400, "stream_line_json", f"{file}: line is not JSON: {error}")
            if not isinstance(row, dict):
                raise Invalid(400, "stream_line_json", f"{file}: line is not an object")
        if file == "wandb-summary.json":
            if len(content) != 1:
                violations.append("summary_lines: summary must be one line")
            if offset > max(0, len(have)):
                violations.append("summary_offset: summary offset leaves a gap")
            return
        if offset > len(have):
            violations.append(f"stream_gap: {file}: offset {offset} but {len(have)} lines known")
        again = have[offset:offset + len(content)]
        if again != content[:len(again)]:
            violations.append(f"stream_rewrite: {file}: different content for a known line")
        if file == "wandb-history.jsonl":
            self.check_history(have[:offset], content, violations)
        else:
            for line in content:
                row = loads_extended(line)
                for key in ("_timestamp", "_runtime"):
                    if not is_number(row.get(key)):
                        violations.append(f"events_key: event without {key}")

    @staticmethod
    def check_history(before, content, violations) -> None:
        last = -1
        for line in reversed(before):
            if line:
                last = loads_extended(line).get("_step", -1)
                break
        for line in content:
            row = loads_extended(line)
            step = row.get("_step")
            if not isinstance(step, int) or isinstance(step, bool) or step < 0:
                violations.append("history_step: _step must be an integer >= 0")
                continue
            if step <= last:
                violations.append(f"history_order: _step {step} after {last}")
            last = step
            for key in ("_timestamp", "_runtime"):
                value = row.get(key)
                if not is_number(value) or math.isnan(value):
                    violations.append(f"history_key: row without numeric {key}")

    # ---- uploads ---------------------------------------------------------

    def upload(self, token: str, name: str, data: bytes, headers, violations: list) -> None:
        if token not in self.tokens:
            raise Invalid(403, "upload_token", "unknown upload URL")
        run, want = self.tokens[token]
        for header in self.options.upload_header if run is not None else ():
            header_name, _, value = header.partition(":")
            if headers.get(header_name.strip()) != value.strip():
                raise Invalid(403, "upload_header", f"signed header {header_name} is missing")
        if urllib.parse.unquote(name) != want:
            raise Invalid(403, "upload_name", "upload URL was signed for another name")
        info = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
                "md5": base64.b64encode(hashlib.md5(data).digest()).decode()}
        if want.endswith(".table.json"):
            info["table"] = self.check_table(data, violations)
        if run is not None and not (self.options.strict and violations):
            run.uploads[want] = info

    @staticmethod
    def check_table(data: bytes, violations: list):
        try:
            table = json.loads(data)
        except ValueError as error:
            violations.append(f"table_json: {error}")
            return None
        if not isinstance(table, dict) or not isinstance(table.get("columns"), list) \
                or not isinstance(table.get("data"), list):
            violations.append("table_shape: need lists 'columns' and 'data'")
            return None
        width = len(table["columns"])
        for row in table["data"]:
            if not isinstance(row, list) or len(row) != width:
                violations.append("table_shape: a row has not one cell per column")
                break
        return {"ncols": width, "nrows": len(table["data"])}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "wandb-stub"
    sys_version = ""
    timeout = 60

    backend: Backend  # set on the subclass made in serve()

    def log_message(self, *_):  # the JSONL log says it all
        pass

    def do_GET(self):
        self.handle_any()

    do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = do_GET

    # ---- one request -----------------------------------------------------

    def handle_any(self):
        backend = self.backend
        if self.path.startswith("/_stub/"):
            return self.handle_control()
        received = time.time()
        seq = backend.next_seq()
        split = urllib.parse.urlsplit(self.path)
        entry = {
            "seq": seq, "t": round(received - backend.started, 3),
            "method": self.command, "path": split.path, "query": split.query,
            "headers": {}, "violations": [],
        }
        violations = entry["violations"]
        for name in LOGGED_HEADERS:
            if self.headers.get(name) is not None:
                entry["headers"][name] = self.headers[name]
        try:
            raw = self.read_body()
        except (OSError, ValueError) as error:
            entry.update(error=f"body not read: {error}", status=None, acted=False)
            backend.record(entry)
            self.close_connection = True
            return
        entry["body_bytes"] = len(raw)
        route, groups = self.route(split.path)
        entry["route"] = route
        data, body = self.decode_body(entry, route, raw)
        op = None
        if route == "graphql" and isinstance(body, dict) and isinstance(body.get("query"), str):
            op = backend.parse_operation(body["query"])[0]
            entry["op"] = op
        self.check_leaks(data, violations)
        auth_status = self.check_auth(entry, route, violations)
        fault = backend.pick_fault(route, op)
        if fault:
            entry["fault"] = fault
            if fault.get("delay"):
                time.sleep(min(float(fault["delay"]), 120))
            if fault.get("drop") == "before":
                entry.update(status=None, acted=False)
                backend.record(entry)
                return self.hang_up()
            refusal = self.fault_answer(fault)
            if refusal is not None:
                entry.update(status=refusal[0], acted=False)
                entry["response"] = refusal[1] if len(refusal[1]) < 2000 else "..."
                backend.record(entry)
                return self.answer(*refusal)
        status, reply = self.act(auth_status, route, groups, body, data, violations)
        cut = fault.get("drop") if fault else None
        entry["status"] = None if cut else status
        entry["acted"] = status == 200  # the server took the data in
        entry["response"] = reply
        backend.record(entry)
        if cut == "after":
            return self.hang_up()
        text = "" if reply is None else json.dumps(reply)
        if fault and "reply" in fault:
            text = fault["reply"]
        self.answer(status, text, partial=cut == "partial")

    def act(self, auth_status, route, groups, body, data, violations):
        backend = self.backend
        if auth_status is not None:
            return auth_status, {"errors": [{"message": "user is not logged in"}]}
        try:
            with backend.lock:
                if route == "graphql":
                    if self.command != "POST":
                        raise Invalid(405, "method", "GraphQL needs POST")
                    before = len(violations)
                    if backend.options.strict and before:
                        raise Invalid(400, "strict", violations[0])
                    reply = backend.graphql(body, violations)
                elif route == "file_stream":
                    if self.command != "POST":
                        raise Invalid(405, "method", "file_stream needs POST")
                    reply = backend.file_stream(*groups, body, violations)
                elif route == "upload":
                    if self.command != "PUT":
                        raise Invalid(405, "method", "uploads need PUT")
                    backend.upload(*groups, data, self.headers, violations)
                    reply = None
                elif route == "root":
                    reply = {"stub": True}
                else:
                    raise Invalid(404, "route", f"no such path: {self.path}")
                if backend.options.strict and violations:
                    raise Invalid(400, "strict", violations[0])
                return 200, reply
        except Invalid as error:
            text = f"{error.rule}: {error.detail}"
            if text not in violations and error.rule != "strict":
                violations.append(text)
            return error.status, {"errors": [{"message": error.detail, "code": error.rule}]}

    @staticmethod
    def route(path: str):
        if path == "/graphql":
            return "graphql", ()
        match = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        if match:
            return "file_stream", tuple(urllib.parse.unquote(part) for part in match.groups())
        match = re.fullmatch(r"/storage/([^/]+)/(.+)", path)
        if match:
            return "upload", match.groups()
        if path in ("/", "/healthz"):
            return "root", ()
        return "other", ()

    def read_body(self) -> bytes:
        if "chunked" in (self.headers.get("transfer-encoding") or "").lower():
            parts = []
            while True:
                size = int(self.rfile.readline().split(b";")[0].strip() or b"0", 16)
                if size == 0:
                    while self.rfile.readline().strip():
                        pass
                    return b"".join(parts)
                parts.append(self.rfile.read(size))
                self.rfile.readline()
        length = int(self.headers.get("content-length") or 0)
        if not 0 <= length <= 256 * 1024 * 1024:
            raise ValueError(f"content-length {length}")
        data = self.rfile.read(length)
        if len(data) != length:
            raise ValueError("connection closed inside the body")
        return data

    def decode_body(self, entry, route, raw):
        violations, data = entry["violations"], raw
        encoding = (self.headers.get("content-encoding") or "").lower()
        if encoding == "gzip" and route in ("graphql", "file_stream"):
            entry["gzip"] = True
            if route == "graphql" or not self.backend.options.gzip:
                violations.append("gzip: server does not announce FILESTREAM_GZIP here")
            try:
                data = gzip.decompress(raw)
            except (OSError, EOFError, zlib.error) as error:
                violations.append(f"gzip: {error}")
                return raw, None
        elif encoding not in ("", "identity", "gzip"):
            violations.append(f"content_encoding: {encoding}")
        body = None
        if route in ("graphql", "file_stream"):
            kind = (self.headers.get("content-type") or "").split(";")[0].strip().lower()
            if kind != "application/json":
                violations.append(f"content_type: {kind or 'none'}")
            try:
                body = json.loads(data)
                entry["body"] = body
            except ValueError as error:
                violations.append(f"body_json: {error}")
                entry["body_text"] = data[:300].decode("utf-8", "replace")
        elif data:
            entry["sha256"] = hashlib.sha256(data).hexdigest()
            if len(data) <= self.backend.options.keep_upload_bytes:
                try:
                    entry["body_text"] = data.decode("utf-8")
                except UnicodeDecodeError:
                    entry["body_base64"] = base64.b64encode(data).decode()
        return data, body

    def check_leaks(self, data: bytes, violations) -> None:
        key = self.backend.options.api_key
        basic = base64.b64encode(f"api:{key}".encode()).decode()
        def leaked(text: str) -> bool:
            return key in text or basic in text
        if leaked(urllib.parse.unquote(self.path)):
            violations.append("api_key_leak: in the URL")
        for name, value in self.headers.items():
            if name.lower() != "authorization" and leaked(value):
                violations.append(f"api_key_leak: in header {name}")
        if key.encode() in data or basic.encode() in data:
            violations.append("api_key_leak: in the body")

    def check_auth(self, entry, route, violations):
        """Returns the refusing status, or None if the request may go on."""
        value = self.headers.get("authorization")
        if route == "upload":
            entry["auth"] = "none" if value is None else "sent"
            if value is not None:
                # A signed URL carries its own permission and may point to
                # another company's host.
                violations.append("upload_auth: credentials sent to an upload URL")
            return None
        entry["auth"] = verdict = self.auth_verdict(value)
        if self.backend.options.reject_auth:
            return 401
        return None if verdict in ("ok",) or route == "root" else 401

    def auth_verdict(self, value) -> str:
        if value is None:
            return "none"
        scheme, _, rest = value.partition(" ")
        if scheme.lower() != "basic":
            return "bad_scheme"
        try:
            user, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "bad_base64"
        if user != "api":
            return "bad_user"
        return "ok" if password == self.backend.options.api_key else "wrong_key"

    # ---- answers ---------------------------------------------------------

    def fault_answer(self, fault):
        """(status, text, extra headers) for faults that replace the answer."""
        if "status" in fault:
            headers = {}
            if fault.get("retry_after") is not None:
                headers["Retry-After"] = str(fault["retry_after"])
            return int(fault["status"]), fault.get("body", '{"error":"stub fault"}'), headers
        if "graphql_error" in fault:
            return 200, json.dumps({"data": None,
                                    "errors": [{"message": fault["graphql_error"]}]}), {}
        return None

    def answer(self, status, text, headers=None, partial=False):
        data = text.encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if self.backend.options.rate_limit:
                remaining, reset = self.backend.options.rate_limit.split("/")
                self.send_header("RateLimit-Remaining", remaining)
                self.send_header("RateLimit-Reset", reset)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:len(data) // 2] if partial else data)
                self.wfile.flush()
        except OSError:
            self.close_connection = True
            return
        if partial:
            self.hang_up()

    def hang_up(self):
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    # ---- control ---------------------------------------------------------

    def handle_control(self):
        """/_stub/...: for the test, not for the client.  Never recorded.

        GET  /_stub/state     everything the server knows, as JSON
        POST /_stub/faults    JSON list of fault rules; replaces the present ones
        POST /_stub/stopped   true or false: what file_stream says of the run
        POST /_stub/down      seconds: refuse connections for so long
        POST /_stub/shutdown  stop
        """
        backend = self.backend
        what = self.path[len("/_stub/"):]
        try:
            raw = self.read_body()
            value = json.loads(raw) if raw else None
            if what == "state":
                return self.answer(200, json.dumps(backend.dump()))
            if what == "faults":
                backend.faults = [Fault(spec, backend.rng) for spec in value or []]
            elif what == "stopped":
                backend.stopped = bool(value)
            elif what == "down":
                backend.down_requests.append(float(value))
            elif what == "shutdown":
                backend.down_requests.append(None)
            else:
                return self.answer(404, "{}")
        except (ValueError, TypeError) as error:
            return self.answer(400, json.dumps({"error": str(error)}))
        self.close_connection = True
        self.answer(200, "{}", {"Connection": "close"})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, *args):
        self.open_sockets: set = set()
        super().__init__(*args)

    def process_request(self, request, client_address):
        self.open_sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open_sockets.discard(request)
        super().shutdown_request(request)

    def cut_connections(self):
        for sock in list(self.open_sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request, client_address):
        pass  # a client that goes away is none of our business


def serve(options) -> None:
    backend = Backend(options)
    handler = type("BoundHandler", (Handler,), {"backend": backend})
    server = Server(("127.0.0.1", options.port), handler)
    port = server.server_address[1]
    backend.url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + options.max_seconds
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    ready = json.dumps({"url": backend.url, "port": port})
    print(ready, flush=True)
    if options.port_file:
        with open(options.port_file, "w", encoding="utf-8") as file:
            file.write(ready + "\n")
    outages = []
    for text in options.down:
        after, _, length = text.partition(":")
        outages.append((time.monotonic() + float(after), float(length)))
    outages.sort()
    while not stop.is_set() and time.monotonic() < deadline:
        pause = None
        if backend.down_requests:
            pause = backend.down_requests.pop(0)
            if pause is None:
                break
        elif outages and time.monotonic() >= outages[0][0]:
            pause = outages.pop(0)[1]
        if pause is not None:
            time.sleep(0.05)  # let the answer to /_stub/down leave
            server.shutdown()
            server.server_close()
            server.cut_connections()
            backend.record({"seq": backend.next_seq(), "event": "down", "seconds": pause,
                            "t": round(time.time() - backend.started, 3)})
            stop.wait(min(pause, max(0.0, deadline - time.monotonic())))
            if stop.is_set():
                break
            server = Server(("127.0.0.1", port), handler)
            backend.record({"seq": backend.next_seq(), "event": "up",
                            "t": round(time.time() - backend.started, 3)})
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
        stop.wait(0.05)
    server.shutdown()
    server.server_close()
    if options.state:
        with open(options.state, "w", encoding="utf-8") as file:
            json.dump(backend.dump(), file, indent=1)
            file.write("\n")
    if backend.log_file:
        backend.log_file.close()


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 picks a free port")
    add("--port-file", help="also write the ready line to this file")
    add("--log", help="append one JSON line for each request to this file")
    add("--state", help="write what the server knows to this file on exit")
    add("--max-seconds", type=float, default=600, help="stop by itself after so long")
    add("--api-key", default=DEFAULT_API_KEY, help="the only key that is let in")
    add("--reject-auth", action="store_true", help="answer 401 to every API request")
    add("--entity", default=DEFAULT_ENTITY, help="the viewer's default entity")
    add("--strict", action="store_true", help="answer 400 to a request that breaks a rule")
    add("--gzip", type=int, default=1, help="1: announce FILESTREAM_GZIP, 0: do not")
    add("--rate-limit", metavar="REMAINING/RESET",
        help="send RateLimit-Remaining and RateLimit-Reset headers")
    add("--upload-header", action="append", default=[], metavar="NAME:VALUE",
        help="header the client must send with its uploads (repeatable)")
    add("--fault", action="append", default=[], metavar="JSON",
        help="a rule of misbehaviour (repeatable), see class Fault")
    add("--down", action="append", default=[], metavar="AFTER:SECONDS",
        help="refuse connections for SECONDS, AFTER seconds from the start (repeatable)")
    add("--seed", type=int, default=0, help="for fault probabilities")
    add("--keep-upload-bytes", type=int, default=65536,
        help="uploads up to this size are kept in the log")
    serve(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

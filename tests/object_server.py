"""A server of the part of S3's protocol that reading needs, over the files of a folder."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape


class _Handler(BaseHTTPRequestHandler):
    """Answers about one folder, the only bucket."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        _, _, key = address.path.strip("/").partition("/")
        if "list-type" in (asked := parse_qs(address.query)):
            self._answer(200, self._listed(asked.get("prefix", [""])[0]))
        elif (self.folder / key).is_file():
            whole = (self.folder / key).read_bytes()
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = map(int, part.groups()) if part else (0, len(whole) - 1)
            more = {"Content-Range": f"bytes {first}-{last}/{len(whole)}"} if part else {}
            self._answer(206 if part else 200, whole[first : last + 1], **more)
        else:
            self._answer(404, b"")

    def _listed(self, prefix: str) -> bytes:
        keys = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        found = [key for key in keys if key.as_posix().startswith(prefix)]
        entries = (
            f"<Contents><Key>{escape(key.as_posix())}</Key>"
            f"<Size>{(self.folder / key).stat().st_size}</Size></Contents>"
            for key in found
        )
        head = f"<KeyCount>{len(found)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{head}{''.join(entries)}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def bucket(folder: Path, name: str = "bucket", path: str = ""):
    """Serve a folder as a bucket; yields the address of a path in it, with a key and options."""
    handler = type("Handler", (_Handler,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    options = f"scheme=http&region=here&endpoint_override=127.0.0.1:{server.server_port}"
    try:
        yield f"s3://key:sentinel@{name}/{path}?{options}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

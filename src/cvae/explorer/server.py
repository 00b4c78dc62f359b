"""Web server of the explorer page, for this machine only."""

import errno
import os
import sys
import threading
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from harness.contract.errors import ConfigError

HOST = "127.0.0.1"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    "": "text/plain; charset=utf-8",
}


class _Handler(SimpleHTTPRequestHandler):
    """Handler of the files of a folder, without listings and without links that lead out of it."""

    protocol_version = "HTTP/1.1"
    extensions_map = _TYPES  # the table of the system may lack .mjs or .wasm

    def send_head(self) -> Any:
        path, root = Path(self.translate_path(self.path)), Path(self.directory).resolve()
        if not path.resolve().is_relative_to(root):
            self.send_error(404)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> Any:
        self.send_error(404)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # another model may replace the files
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the browser closed the page
            super().handle_error(request, client_address)


def bind(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server on 127.0.0.1 for a folder, which may be created later.

    Args:
        port: the port; 0 for a free one.

    Raises:
        ConfigError: the port cannot be used.
    """
    try:
        return _Server((HOST, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise ConfigError(f"port={port}: {reason}; use port=0 for a free one") from None


def serve(server: ThreadingHTTPServer, open_browser: bool) -> None:
    """Print the address of the page, and serve it until Ctrl-C.

    Args:
        open_browser: whether to open the page in the browser, if this machine has a display.
    """
    url = f"http://{HOST}:{server.server_port}/"
    print(f"{url} (Ctrl-C to stop)", flush=True)
    if open_browser and _has_display():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def _has_display() -> bool:
    """Return whether a browser can open a window. A browser in the terminal would block."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))

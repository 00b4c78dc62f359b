"""Runs with a full disk, or without a network."""

import contextlib
import csv
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.run_folder import checkpoints, reading
from tests.conftest import ROOT, StartedScript, clean_environment, run_script, tiny
from tests.tally import Promise

# a full disk


@contextmanager
def mount_small_disk(folder: Path, num_bytes: int) -> Iterator[bool]:
    """Make a folder and mount a disk of this size on it; yield whether it is mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    mounted = (
        os.geteuid() == 0 and not subprocess.run(mount, capture_output=True, check=False).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def fill_disk(folder: Path, bytes_left: int) -> None:
    """Fill the disk until this many bytes are left."""
    usage = os.statvfs(folder)
    num_bytes = usage.f_bavail * usage.f_frsize - bytes_left
    # the run may write at the same time
    with contextlib.suppress(OSError), (folder / "ballast").open("wb") as file:
        file.write(bytes(max(0, num_bytes)))


@pytest.mark.fault(Promise.DISK, "disk full while a run writes")
@pytest.mark.parametrize(
    ("last_file", "bytes_left", "devices"),
    [
        ("checkpoint", 100_000, 1),
        pytest.param("checkpoint", 100_000, 2, marks=pytest.mark.long),
        pytest.param("picture", 8_192, 1, marks=pytest.mark.long),
        pytest.param("metrics", 0, 1, marks=pytest.mark.long),
        pytest.param("metrics", 0, 2, marks=pytest.mark.long),
    ],
)
def test_a_full_disk_fails_a_run_with_one_line(
    last_file: str, bytes_left: int, devices: int, data_dir: Path, tmp_path: Path
) -> None:
    """Fill the disk after the second save, or limit file sizes if no disk can be mounted."""
    with mount_small_disk(tmp_path / "disk", 30_000_000) as mounted:
        if devices > 1 and not mounted:
            pytest.skip(
                "no disk can be mounted here, and file sizes are limited for one process only"
            )
        run_dir = tmp_path / "disk" / "run"
        overrides = [
            "trainer.max_epochs=100000",
            "logger=csv",
            "callbacks.figures.every_n_epochs=1",
        ]
        overrides += ["callbacks.last.every_n_epochs=1", f"trainer.devices={devices}"]
        if last_file == "checkpoint":
            overrides += ["callbacks.figures=null"]
        process = StartedScript("train", *tiny(data_dir, run_dir), *overrides)
        try:
            for _ in range(1200):
                if (run_dir / "checkpoints" / checkpoints.PREVIOUS).exists():
                    break
                time.sleep(0.05)
            if mounted:
                fill_disk(tmp_path / "disk", bytes_left)
            else:
                limit = (1000, resource.RLIM_INFINITY)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 1, errors
        assert "Traceback" not in errors + output, errors + output
        assert "Logging error" not in errors
        (line,) = errors.strip().splitlines()
        assert line.startswith(f"failed: {run_dir}: OSError")
        assert "cannot be written" in line
        if mounted:
            assert "No space left on device" in line
        newest, _, skipped = checkpoints.find_newest(run_dir / "checkpoints")
        assert skipped == []
        assert newest is not None
        assert checkpoints.load(newest)["global_step"] >= 7
        rows = (run_dir / "metrics.csv").read_text()
        assert rows.endswith("\n")
        table = list(csv.DictReader(rows.splitlines()))
        assert all(None not in row and None not in row.values() for row in table)
        assert not list(run_dir.rglob("*.tmp"))


# no network: local servers that refuse connections, hang or disconnect


class DisconnectingHandler(BaseHTTPRequestHandler):
    """A W&B server that accepts a run and disconnects in the middle of it."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.streamed += "file_stream" in self.path
        if self.server.streamed > 1:  # after the first rows
            self.connection.close()
            self.close_connection = True
            return
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        bucket = {"id": "x", "name": "x", "displayName": "x", "config": "{}", "project": project}
        answer: dict[str, Any] = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if b"UpsertBucket" not in body:
            viewer = {"id": "v", "username": "u", "entity": "e", "flags": "{}"}
            answer = {"viewer": {**viewer, "teams": {"edges": []}}, "serverInfo": {}}
        content = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    streamed = 0
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


@contextmanager
def start_faulty_server(fault: str) -> Iterator[str]:
    """Yield the address of a local server with one kind of fault."""
    if fault == "refuses":
        yield "http://127.0.0.1:9"
        return
    if fault == "cut off in the middle":
        with Server(("127.0.0.1", 0), DisconnectingHandler) as web:
            threading.Thread(target=web.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{web.server_port}"
            assert web.streamed > 0  # the run was accepted
            web.shutdown()
        return
    clients: list[socket.socket] = []
    response = {
        "hangs": None,
        "closes": b"",
        "half an answer": b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"data":',
        "wrong key": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
        "broken": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    }[fault]

    def answer(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                clients.append(client)
                if response is not None:
                    client.settimeout(2)
                    client.recv(65536)
                    client.sendall(response)
                    client.close()
            except TimeoutError:
                continue
            except OSError:
                if listener.fileno() < 0:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)
    for client in clients:
        client.close()


def run_online(
    address: str, run_dir: Path, data_dir: Path, timeout: float = 120, key: str = "0" * 40
) -> str:
    """Train with the W&B server at an address, check the run, and return the output."""
    overrides = [*tiny(data_dir, run_dir), "logger.wandb.mode=online"]
    done = run_script(
        "train",
        *overrides,
        timeout=timeout,
        WANDB_MODE="online",
        WANDB_API_KEY=key,
        WANDB_BASE_URL=address,
    )
    check_run(done, run_dir)
    return done.stdout


def check_run(done: subprocess.CompletedProcess[str], run_dir: Path) -> None:
    """Check that a run has finished and that all its metrics are saved."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    assert not re.search(r"^\S+ \S+ (INFO|WARN|ERROR) ", done.stderr, re.MULTILINE)  # wandb-core
    assert reading.read_summary(run_dir)["status"] == "finished"
    with (run_dir / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table if row["train/loss"]] == list(range(1, 15))
    assert [row["epoch"] for row in table if row["val/elbo"]] == ["0", "1"]
    assert len([row for row in table if row["test/elbo"]]) == 1
    assert list(run_dir.glob("wandb/*run-*/run-*.wandb"))  # for wandb sync


SERVER_FAULTS = ["refuses", "closes", "half an answer", "wrong key", "broken"]


@pytest.mark.fault(
    Promise.NETWORK, "a server that refuses, hangs or sends wrong or partial answers"
)
@pytest.mark.parametrize(
    "fault", ["hangs", *(pytest.param(k, marks=pytest.mark.long) for k in SERVER_FAULTS)]
)
def test_a_run_continues_without_the_wandb_server(
    fault: str, data_dir: Path, tmp_path: Path
) -> None:
    with start_faulty_server(fault) as address:
        output = run_online(address, tmp_path / "run", data_dir)
    assert "W&B does not answer" in output
    assert "wandb sync" in output


@pytest.mark.long
@pytest.mark.fault(Promise.NETWORK, "a server that disconnects during the run")
def test_a_run_continues_after_the_server_disconnects(data_dir: Path, tmp_path: Path) -> None:
    with start_faulty_server("cut off in the middle") as address:
        output = run_online(address, tmp_path / "run", data_dir, timeout=180)
    assert "W&B" in output


@pytest.mark.long
@pytest.mark.fault(Promise.NETWORK, "an invalid API key")
def test_a_run_continues_with_an_invalid_key(data_dir: Path, tmp_path: Path) -> None:
    with start_faulty_server("wrong key") as address:
        run_online(address, tmp_path / "run", data_dir, key="short")


@pytest.mark.fault(Promise.NETWORK, "no home or cache folder")
@pytest.mark.parametrize("home", [None, pytest.param("/dev/null/home", marks=pytest.mark.long)])
def test_a_run_needs_no_home_or_cache_folder(
    home: str | None, data_dir: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    nowhere = dict.fromkeys(("CACHE", "CONFIG", "DATA", "ARTIFACT"), "/dev/null/x")
    environment = {k: v for k, v in clean_environment().items() if k not in ("HOME", "WANDB_MODE")}
    environment |= {f"WANDB_{name}_DIR": folder for name, folder in nowhere.items()}
    environment |= {"XDG_CACHE_HOME": "/dev/null/x", "MPLCONFIGDIR": "/dev/null/x"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "src/train.py"), *tiny(data_dir, run_dir)],
        env={**environment, **({"HOME": home} if home else {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    check_run(done, run_dir)

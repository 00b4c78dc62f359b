"""Checkpoints are complete or absent after a kill, and rejected if damaged."""

import contextlib
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import struct
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contract.errors import ConfigError
from harness.run_folder import checkpoints
from tests.tally import Promise, Survived

DAMAGE = "bits flipped or bytes lost, added or changed, at random"
KILLED_IN_SAVE = "SIGKILL during a save, with TMPDIR on another disk"


def make_checkpoint(step: int = 7, size: int = 3000) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    state = {"model.a": torch.randn(size, generator=generator), "model.b": torch.ones(2, 3)}
    return {"state_dict": state, "config": {"model": {"latent_dim": 3}}, "global_step": step}


@pytest.fixture
def intact(tmp_path: Path) -> Path:
    path = tmp_path / "good.ckpt"
    checkpoints.save(make_checkpoint(), path)
    return path


def test_a_checkpoint_round_trips(intact: Path) -> None:
    read = checkpoints.load(intact)
    assert torch.equal(read["state_dict"]["model.a"], make_checkpoint()["state_dict"]["model.a"])
    assert read["config"] == make_checkpoint()["config"]


def test_torch_load_reads_checkpoints(intact: Path) -> None:
    for mmap in (False, True):
        read = torch.load(intact, weights_only=True, mmap=mmap)
        assert torch.equal(
            read["state_dict"]["model.a"], make_checkpoint()["state_dict"]["model.a"]
        )
    with zipfile.ZipFile(intact) as archive:
        assert archive.testzip() is None
        assert b"format 1, step 7, sha256" in archive.comment


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(make_checkpoint(step), tmp_path / "last.ckpt")
        checkpoints.save(make_checkpoint(step), tmp_path / "best.ckpt")
    steps = {p.name: checkpoints.load(p)["global_step"] for p in tmp_path.iterdir()}
    assert steps == {"last.ckpt": 3, "last-previous.ckpt": 2, "best.ckpt": 3}


def test_content_that_cannot_be_loaded_is_not_saved(intact: Path) -> None:
    with pytest.raises(ConfigError, match=r"pathlib"):
        checkpoints.save({**make_checkpoint(), "callbacks": {"mine": Path("x")}}, intact)
    assert checkpoints.load(intact)["global_step"] == 7
    assert [p.name for p in intact.parent.iterdir()] == ["good.ckpt"]


# damage


def damage_randomly(original: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return a random kind of damage, and the damaged content."""
    size = len(original)
    position, count = rng.randrange(size), rng.randint(1, 600)
    kinds: dict[str, Callable[[], bytes]] = {
        "bit": lambda: _flip_bits(original, position, 1 << rng.randrange(8)),
        "bit near the end": lambda: _flip_bits(original, size - 1 - rng.randrange(160), 1),
        "bit near the start": lambda: _flip_bits(
            original, rng.randrange(100), 1 << rng.randrange(8)
        ),
        "truncated": lambda: original[:position],
        "some bytes short": lambda: original[: -rng.randint(1, 150)],
        "zeros": lambda: _overwrite(original, position, bytes(count)),
        "noise": lambda: _overwrite(original, position, rng.randbytes(count)),
        "appended": lambda: original + rng.randbytes(count),
        "appended zeros": lambda: original + bytes(count),
        "a page lost": lambda: (
            original[: position // 512 * 512] + original[position // 512 * 512 + 512 :]
        ),
        "bytes swapped": lambda: original[:position][::-1] + original[position:],
        "twice": lambda: original + original[rng.randrange(1, size) :],
    }
    kind = rng.choice(sorted(kinds))
    return kind, kinds[kind]()


def _flip_bits(data: bytes, position: int, bits: int) -> bytes:
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1 :]


def _overwrite(data: bytes, position: int, new: bytes) -> bytes:
    return (data[:position] + new + data[position + len(new) :])[: len(data)]


def assert_rejects_damage(number: int, intact: Path) -> None:
    rng = random.Random(number)
    original = intact.read_bytes()
    kind, bad = damage_randomly(original, rng)
    if bad == original:  # zeros over zeros
        bad = _flip_bits(original, rng.randrange(len(original)), 1)
    path = intact.with_name("bad.ckpt")
    path.write_bytes(bad)
    with pytest.raises(ConfigError) as caught:
        checkpoints.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), kind
    assert len(message.splitlines()) == 1, kind
    assert "{" not in message, message


@pytest.mark.fault(Promise.CHECKPOINTS, DAMAGE)
@pytest.mark.parametrize("number", range(40))
def test_damage_is_detected(number: int, intact: Path) -> None:
    assert_rejects_damage(number, intact)


@pytest.mark.long
@pytest.mark.fault(Promise.CHECKPOINTS, DAMAGE)
def test_a_thousand_damaged_files_are_rejected(
    intact: Path, survived: Survived, faults_seed: int
) -> None:
    for number in range(1000):
        assert_rejects_damage(1000 * (1 + faults_seed) + number, intact)
        survived(1)


@pytest.mark.long
@pytest.mark.fault(Promise.CHECKPOINTS, "one flipped bit, in each byte of a checkpoint")
def test_a_flipped_bit_in_any_byte_is_detected(tmp_path: Path, survived: Survived) -> None:
    path = tmp_path / "small.ckpt"
    checkpoints.save({"state_dict": {}, "config": {}, "global_step": 1}, path)
    original = path.read_bytes()
    for position in range(len(original)):
        path.write_bytes(_flip_bits(original, position, 1 << position % 8))
        with pytest.raises(ConfigError):
            checkpoints.load(path)
        survived(1)


@pytest.mark.fault(Promise.CHECKPOINTS, "truncated at every seventh byte")
def test_truncated_files_are_rejected(tmp_path: Path, survived: Survived) -> None:
    path = tmp_path / "small.ckpt"
    checkpoints.save({"state_dict": {}, "config": {}}, path)
    original = path.read_bytes()
    for size in range(0, len(original), 7):
        path.write_bytes(original[:size])
        with pytest.raises(ConfigError):
            checkpoints.load(path)
        survived(1)


def sign(data: bytes, version: int = 1) -> bytes:
    """Return content with a valid checksum, as an attacker would write it."""
    unsigned = f"run checkpoint, format {version}, step 1, sha256 ".encode()
    data = data[:-2] + struct.pack("<H", len(unsigned) + 64) + unsigned
    return data + hashlib.sha256(data).hexdigest().encode()


def write_zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", bytes(50_000_000))


def write_overlapping_zip(path: Path) -> None:
    """Write a zip of many entries for the same bytes, which unpacks to more than its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data/0", bytes(100_000))
        archive.filelist += [archive.filelist[0]] * 500


def sign_file(path: Path, version: int = 1) -> None:
    path.write_bytes(sign(path.read_bytes(), version))


def write_other_file(kind: str, path: Path) -> None:
    """Write a file, folder or link that is not a checkpoint of this project."""
    contents = {
        "empty": b"",
        "html": b"\n <!DOCTYPE html><html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "pickle": b"\x80\x02}q\x00.",
        "noise": random.Random(0).randbytes(5000),
        "signed nothing": sign(b"PK\x03\x04" + bytes(50)),
    }
    saved = {"of torch": make_checkpoint(), "newer": make_checkpoint(), "a list": []}
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind in saved:
        torch.save(saved[kind], path)
        if kind != "of torch":
            sign_file(path, 7 if kind == "newer" else 1)
    elif kind in ("bomb", "overlapping"):
        (write_zip_bomb if kind == "bomb" else write_overlapping_zip)(path)
        sign_file(path)
    elif kind == "no config":
        checkpoints.save({"state_dict": {}}, path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else path)


@pytest.mark.fault(
    Promise.CHECKPOINTS, "other files in its place: zip bombs, web pages, pipes, links"
)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "empty"),
        ("html", "looks like HTML"),
        ("lfs", "Git LFS"),
        ("pickle", "a pickle"),
        ("noise", "not a checkpoint"),
        ("signed nothing", "no zip archive"),
        ("of torch", "not written by this project"),
        ("newer", "newer version .format 7"),
        ("a list", "keys: none"),
        ("bomb", "unpack to more"),
        ("overlapping", "unpack to more"),
        ("no config", "not a checkpoint of this project"),
        ("folder", "not a file"),
        ("pipe", "not a file"),
        ("device", "not a file"),
        ("loop", "cannot be read"),
        ("missing", "cannot be read"),
    ],
)
def test_other_files_are_rejected(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    write_other_file(kind, path)
    with pytest.raises(ConfigError, match=message) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_large_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with path.open("wb") as file:
        file.truncate(checkpoints.MAX_BYTES + 1)  # a sparse file
    with pytest.raises(ConfigError, match="above"):
        checkpoints.load(path)


def test_the_newest_intact_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (4, 5):
        checkpoints.save(make_checkpoint(step), tmp_path / "last.ckpt")
    checkpoints.save(make_checkpoint(5), tmp_path / "best.ckpt")
    newest = checkpoints.find_newest(tmp_path)
    assert (newest.path, newest.skipped) == (tmp_path / "last.ckpt", [])
    assert newest.content["global_step"] == 5
    for name in ("last.ckpt", "best.ckpt"):
        path = tmp_path / name
        path.write_bytes(_flip_bits(path.read_bytes(), 300, 4))
    found, _, skipped = checkpoints.find_newest(tmp_path)
    assert found == tmp_path / "last-previous.ckpt"
    assert len(skipped) == 2
    assert all("damaged" in line for line in skipped)
    found.write_bytes(b"")
    assert checkpoints.find_newest(tmp_path)[0] is None
    assert checkpoints.find_newest(tmp_path / "nothing") == (None, {}, [])


# disk full, and kills


@contextmanager
def mount_small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """Mount a disk of this size on the folder or, without permission, limit file sizes."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    if (
        os.geteuid() == 0
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    ):
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes // 2, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.fault(Promise.DISK, "disk full during a save")
@pytest.mark.parametrize("size", [4_000, 30_000, 100_000, 119_000])
def test_a_full_disk_keeps_the_earlier_checkpoint(size: int, tmp_path: Path) -> None:
    with mount_small_disk(tmp_path, 200_000):
        path = tmp_path / "last.ckpt"
        checkpoints.save(make_checkpoint(1, size=20_000), path)  # 80 of 200 kB
        with pytest.raises(OSError, match="its old content is unchanged") as caught:
            checkpoints.save(make_checkpoint(2, size=size * 10), path)
        assert str(path) in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        assert checkpoints.load(path)["global_step"] == 1


def save_until_killed(folder: Path, size: int, sender: Connection) -> None:
    """Save checkpoints until killed; report (begun, finished) steps around each save."""
    os.environ["TMPDIR"] = "/dev/shm"  # not on the file system of the folder
    tempfile.tempdir = None
    for step in range(1, 10**6):
        state = {"model.a": torch.full((size,), float(step))}
        sender.send((step, step - 1))  # begun, finished
        checkpoints.save(
            {"state_dict": state, "config": {}, "global_step": step}, folder / "last.ckpt"
        )
        sender.send((step, step))


def kill_while_saving(folder: Path, seed: int, kills: int, size: int = 1_000_000) -> dict[str, int]:
    """SIGKILL a process that saves, check what it leaves, and count the kills inside a save."""
    rng = random.Random(seed)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.harness.test_checkpoints"])
    counts = {"kills": 0, "inside a save": 0, "with the file half written": 0}
    for _ in range(kills):
        for path in folder.glob("*"):
            path.unlink()
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=save_until_killed, args=(folder, size, sender))
        process.start()
        sender.close()
        begun = finished = 0
        num_saves = rng.randint(1, 4)
        while finished < num_saves:
            begun, finished = receiver.recv()
        time.sleep(rng.random() * 0.02)  # about the duration of a save
        process.kill()
        process.join()
        with contextlib.suppress(EOFError, OSError):
            while True:
                begun, finished = receiver.recv()
        assert process.exitcode == -signal.SIGKILL
        counts["kills"] += 1
        counts["inside a save"] += begun > finished
        counts["with the file half written"] += bool(list(folder.glob(".last.ckpt.*.tmp")))
        last = checkpoints.load(folder / "last.ckpt")
        assert last["global_step"] in (finished, begun)
        assert last["state_dict"]["model.a"].unique().tolist() == [float(last["global_step"])]
        if finished > 1:
            before = checkpoints.load(folder / "last-previous.ckpt")
            assert before["global_step"] in (last["global_step"] - 1, last["global_step"])
        checkpoints.save(make_checkpoint(9), folder / "last.ckpt")
        assert not list(folder.glob(".*.tmp"))  # a save removes temporary files of killed processes
    return counts


@pytest.mark.fault(Promise.CHECKPOINTS, KILLED_IN_SAVE)
def test_kills_while_saving_leave_a_checkpoint(tmp_path: Path, survived: Survived) -> None:
    counts = kill_while_saving(tmp_path, seed=1, kills=10)
    assert counts["inside a save"] > 0
    survived(counts["inside a save"])


@pytest.mark.long
@pytest.mark.fault(Promise.CHECKPOINTS, KILLED_IN_SAVE)
@pytest.mark.parametrize("part", range(4))
def test_hundreds_of_kills_while_saving_leave_a_checkpoint(
    part: int, tmp_path: Path, survived: Survived, faults_seed: int
) -> None:
    counts = kill_while_saving(tmp_path, seed=2 + part + 10 * faults_seed, kills=75)
    assert counts["inside a save"] >= 12
    survived(counts["inside a save"])

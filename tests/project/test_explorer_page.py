"""Tests of the explorer page in Chromium: its numbers match PyTorch, and its controls work.

Skipped without Playwright or Chromium, except in CI.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch

from cvae import load_run
from cvae.data import MNISTDataModule
from cvae.explorer import folder, server
from cvae.models import VAE, Autoencoder
from cvae.morphology import FACTORS
from cvae.networks import MLP
from tests.conftest import ROOT, run_script

pytestmark = pytest.mark.engines
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
THREE = [(0.3, 0.25), (0.5, 0.17), (0.68, 0.3), (0.48, 0.47)]  # shares of the drawing area
THREE += [(0.7, 0.65), (0.5, 0.83), (0.28, 0.74)]
WIDTHS = (360, 768, 1440)  # pixels: a phone, a tablet and a computer


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, or fail it in CI, where everything is installed."""
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    raise AssertionError


class Site(NamedTuple):
    """A served page and the model that it runs."""

    url: str
    model: Any
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        skip_or_fail("needs Playwright: pip install --group browser")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        skip_or_fail("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def serve_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, Any], Site]]:
    """Return a function that serves a folder until the tests end."""
    running = []

    def serve(page: Path, model: Any) -> Site:
        server_of_page = server.bind(page, 0)
        threading.Thread(target=server_of_page.serve_forever, args=(0.05,), daemon=True).start()
        running.append(server_of_page)
        facts = json.loads((page / "model" / "model.json").read_text())
        return Site(f"http://127.0.0.1:{server_of_page.server_port}/", model, facts)

    yield serve
    for one in running:
        one.shutdown()
        one.server_close()


@pytest.fixture(scope="module")
def digits_site(
    browser: Any,
    serve_page: Callable[[Path, Any], Site],
    tmp_path_factory: pytest.TempPathFactory,
) -> Site:
    """Return the page of a model of MNIST: the pretrained one, or a quick run."""
    place, run = tmp_path_factory.mktemp("explorer"), ROOT / "pretrained"
    if not run.is_dir():
        run = place / "run"
        overrides = (
            "experiment=quick",
            "logger=csv",
            "callbacks.figures=null",
            f"hydra.run.dir={run}",
        )
        done = run_script("train", *overrides, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
    page = place / "page"
    done = run_script("explore", f"run={run}", f"output={page}", "serve=false", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return serve_page(page, load_run(run))


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[str], Any]]:
    """Return a function that opens an address in a tab, and waits until the page is ready.

    At the end, no tab may have logged an error or loaded anything from another host.
    """
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(20_000)  # ms
    errors: list[str] = []
    urls: list[str] = []

    def open_tab(url: str) -> Any:
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        tab.on("request", lambda request: urls.append(request.url))
        tab.goto(url)
        tab.evaluate("window.explorer.ready")
        return tab

    yield open_tab
    context.close()
    assert errors == []
    assert urls
    assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in urls)


def read_state(tab: Any) -> dict[str, Any]:
    """Return the numbers that the page shows, after all updates."""
    tab.evaluate("window.explorer.idle()")
    return dict(tab.evaluate("window.explorer.state()"))


def to_tensor(values: Any) -> torch.Tensor:
    """Return numbers of the page as a float tensor; JavaScript writes 1.0 as 1."""
    return torch.tensor(values, dtype=torch.float32)


def draw(tab: Any, points: list[tuple[float, float]]) -> None:
    """Draw a stroke with the mouse, through points in shares of the drawing area."""
    box = tab.locator("#drawing").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=4)
    tab.mouse.up()


def set_slider(slider: Any, value: float) -> None:
    slider.evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )


def read_images(tab: Any, shape: list[int]) -> torch.Tensor:
    """Return the grey images on the canvases of the tiles."""
    script = """all => all.map(c => Array.from(
        c.getContext("2d").getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 == 0)
    ))"""
    pixels = tab.locator("#tiles canvas").evaluate_all(script)
    return torch.tensor(pixels).float().view(-1, *shape) / 255


def test_a_drawn_three_becomes_ten_digits(digits_site: Site, visit: Callable[[str], Any]) -> None:
    model, shape = digits_site.model, digits_site.facts["image_shape"]
    tab = visit(digits_site.url)
    draw(tab, THREE)
    now = read_state(tab)
    x = to_tensor(now["pixels"]).view(1, *shape)
    assert set(now["pixels"]) == {0, 1}
    rows, columns = (x[0, 0] > 0).nonzero().float().mean(dim=0)
    assert abs(rows - 13.5) < 1.5  # centered, as in MNIST
    assert abs(columns - 13.5) < 1.5
    eps = torch.tensor(digits_site.facts["eps"])
    with torch.no_grad():
        z = to_tensor([now["latent"]]).expand(10, -1)
        images = model.sample(y=torch.arange(10), z=z)
        bounds = model.log_weights(
            x.expand(10, -1, -1, -1), torch.arange(10), eps.expand(10, 1, -1)
        )[:, 0]
        code = model.embed(x, now["guess"])
    assert now["guess"] == int(bounds.argmax()) == 3
    torch.testing.assert_close(to_tensor(now["bounds"]), bounds, rtol=1e-4, atol=0.01)
    torch.testing.assert_close(z[:1], code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(to_tensor(now["images"]).view(10, *shape), images, rtol=0, atol=1e-3)
    torch.testing.assert_close(read_images(tab, shape), images, rtol=0, atol=0.003)
    assert "Guess: 3." in tab.locator("#guess-text").inner_text()


@pytest.mark.parametrize("name", FACTORS)
def test_a_style_slider_changes_the_factor_of_its_name(
    name: str, digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    draw(tab, THREE)
    measured = []
    for value in (-2, 0, 2):
        set_slider(tab.get_by_label(name, exact=True), value)
        read_state(tab)
        measured.append(FACTORS[name](read_images(tab, digits_site.facts["image_shape"])))
    medians = np.nanmedian(measured, axis=1)
    assert medians[0] < medians[1] < medians[2]


def test_a_link_restores_the_drawing_and_the_style(
    digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    draw(tab, THREE)
    read_state(tab)
    set_slider(tab.get_by_label("slant", exact=True), 1.5)
    before = read_state(tab)
    tab.wait_for_timeout(600)  # ms; the page updates its address later
    other = visit(tab.url)
    after = read_state(other)
    for key in ("latent", "pixels", "guess", "bounds", "label", "images"):
        assert after[key] == before[key], key


def test_a_link_restores_the_chosen_label_of_an_example(
    digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    tab.get_by_role("button", name="Held-out image").nth(1).click()
    tab.locator("#label").select_option(label="7")
    before = read_state(tab)
    tab.wait_for_timeout(600)  # ms; the page updates its address later
    other = visit(tab.url)
    other.locator("#reset").click()  # to z of the example with this label
    after = read_state(other)
    assert after["label"] == before["label"] == 7
    assert after["latent"] == before["latent"]


@pytest.mark.parametrize("change", ['{ model: "another" }', "{ example: 99 }"])
def test_a_link_that_does_not_fit_changes_nothing(
    change: str, digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    before = read_state(tab)
    broken = f"""async () => {{
        const {{ decodeState, encodeState }} = await import("./link.js");
        const link = decodeState(location.hash.slice(1));
        location.hash = encodeState({{ ...link, ...{change} }});
    }}"""
    tab.wait_for_timeout(600)  # ms; the page updates its address later
    tab.evaluate(broken)
    tab.locator("#message:has-text('does not match')").wait_for()
    assert read_state(tab) == before
    tab.locator("#label").select_option(label="7")  # encodes the unchanged example
    after = read_state(tab)
    assert after["pixels"] == before["pixels"]
    assert after["label"] == 7


def test_a_click_draws_a_dot_and_strokes_are_cut_at_the_edge(
    digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    tab.locator("#clear").click()
    assert read_state(tab)["pixels"] is read_state(tab)["guess"] is None
    tab.locator("#drawing").click()  # a dot
    assert sum(read_state(tab)["pixels"]) > 4
    tab.locator("#clear").click()
    draw(tab, THREE)
    draw(tab, [(0.5, 0.5), (0.5, 30.0)])  # far below the drawing area
    box = to_tensor(read_state(tab)["pixels"]).view(28, 28).nonzero()
    assert box.amin(dim=0)[0] <= 6  # the drawing still fills 20 of 28 rows
    assert box.amax(dim=0)[0] >= 21


def test_a_cleared_drawing_stays_empty_until_the_pen_is_down_again(
    digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    area = tab.locator("#drawing")
    area.focus()
    for key in ("ArrowUp", "Space", "ArrowDown", "Delete", "ArrowDown"):
        tab.keyboard.press(key)
    assert read_state(tab)["pixels"] is None
    for key in ("Space", "ArrowDown", "ArrowDown"):
        tab.keyboard.press(key)
    before = read_state(tab)["pixels"]
    area.hover(position={"x": 20, "y": 20})  # no button is pressed
    area.hover(position={"x": 90, "y": 90})
    assert read_state(tab)["pixels"] == before


def test_drawing_and_style_work_with_the_keyboard_alone(
    digits_site: Site, visit: Callable[[str], Any]
) -> None:
    tab = visit(digits_site.url)
    before = read_state(tab)
    focused = "document.activeElement.id || document.activeElement.textContent"
    while tab.evaluate(focused) != "drawing":
        tab.keyboard.press("Tab")
    for key in ("ArrowUp", *("ArrowUp",) * 6, "Space", *("ArrowDown",) * 14):
        tab.keyboard.press(key)
    drawn = read_state(tab)
    assert drawn["pixels"] != before["pixels"]
    assert drawn["guess"] == 1  # an upright stroke
    slider = tab.get_by_label("thickness", exact=True).get_attribute("id")
    for _ in range(200):
        tab.keyboard.press("Tab")
        if tab.evaluate(focused) == slider:
            break
    tab.keyboard.press("ArrowRight")
    moved = np.array(read_state(tab)["latent"]) - np.array(drawn["latent"])
    (thickness,) = [d for d in digits_site.facts["directions"] if d["name"] == "thickness"]
    step = 0.01 * (thickness["high"] - thickness["low"])
    assert moved == pytest.approx(step * np.array(thickness["vector"]), abs=1e-5)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_phones_tablets_and_computers(
    width: int, digits_site: Site, visit: Callable[[str], Any], tmp_path: Path
) -> None:
    tab = visit(digits_site.url)
    tab.set_viewport_size({"width": width, "height": 900})
    draw(tab, THREE)
    read_state(tab)
    tab.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    sizes = tab.locator(":is(button, input, select):visible:not(#examples *)").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).map(b => [b.left, b.right])"
    )
    assert sizes
    assert all(0 <= left <= right <= width for left, right in sizes)


@pytest.mark.parametrize("model_class", [VAE, Autoencoder])
def test_the_page_of_a_model_without_labels_hides_labels_and_guess(
    model_class: type[Autoencoder],
    data_dir: Path,
    serve_page: Callable[[Path, Any], Site],
    visit: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    network = partial(MLP, hidden_dim=12, encoder_blocks=1, decoder_blocks=1)
    model = model_class(network, latent_dim=3).eval()
    data = MNISTDataModule(data_dir, "KMNIST", validation_size=60)
    folder.write_folder(model, data, "untrained", tmp_path)
    tab = visit(serve_page(tmp_path, model).url)
    draw(tab, THREE)
    now = read_state(tab)
    x, z = to_tensor(now["pixels"]).view(1, 1, 28, 28), to_tensor([now["latent"]])
    torch.testing.assert_close(z, model.embed(x).detach(), rtol=1e-4, atol=1e-4)
    images = to_tensor(now["images"]).view(1, 1, 28, 28)
    torch.testing.assert_close(images, model.sample(z=z), rtol=0, atol=1e-3)
    assert now["guess"] is now["label"] is None
    hidden = {name: tab.locator(f"#{name}").is_hidden() for name in ("guess-block", "label-block")}
    assert all(hidden.values())
    assert tab.locator("#sample-block").is_visible() is (model_class is VAE)

"""JSON Schemas of the configuration files are up to date and report mistakes."""

import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

import hydra
import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf
from referencing import Registry, Resource

from harness.config import paths
from harness.config.composition import register_resolvers
from harness.config.editor import editor_schemas, schema_comment
from harness.config.hydra_versions import INITIALIZE_OPTIONS
from harness.config.paths import CONF

FOLDER = paths.ROOT / "docs" / "schemas"
FILES = sorted(p for p in CONF.rglob("*.yaml") if CONF / "hydra" not in p.parents)
MARK = "# yaml-language-server: $schema="


def make_validator(name: str) -> Draft7Validator:
    schemas = {p.name: json.loads(p.read_text()) for p in FOLDER.glob("*.json")}
    resources = [(key, Resource.from_contents(schema)) for key, schema in schemas.items()]
    registry: Any = Registry().with_resources(resources)
    return Draft7Validator(schemas[name], registry=registry)


def find_errors(name: str, content: Any) -> list[str]:
    return [error.message for error in make_validator(name).iter_errors(content)]


def test_the_schemas_are_up_to_date() -> None:
    """If this fails, run ``make schemas``."""
    register_resolvers()
    made = json.loads(json.dumps(editor_schemas(CONF)))
    assert made == {p.name: json.loads(p.read_text()) for p in FOLDER.glob("*.json")}


def test_the_reference_of_settings_is_up_to_date() -> None:
    """If this fails, run ``make schemas``."""
    page = runpy.run_path(str(paths.ROOT / "docs" / "reference.py"))["render_settings_page"]()
    assert page == (paths.ROOT / "docs" / "reference" / "settings.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(CONF).as_posix())
def test_every_file_names_its_schema_and_satisfies_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    named = [line for line in lines[:2] if line.startswith(MARK)]
    if path.name == "wandb_sweep.yaml":  # read by the wandb command
        assert named == []
        return
    assert named == [schema_comment(path, CONF, FOLDER)]
    schema = (path.parent / named[0].removeprefix(MARK)).resolve()
    assert schema.is_file()
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(content, dict)
    assert find_errors(schema.name, content) == []


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("optimizer.json", {"_target_": "torch.optim.SGD", "momentm": 0.9}, "'momentm'"),
        ("optimizer.json", {"_target_": "torch.optim.AdamW", "lr": -1.0}, "-1.0"),
        ("model.network.json", {"_target_": "cvae.networks.MLP", "hidden_dim": 0.5}, "0.5"),
        ("model.network.json", {"_target_": "cvae.networks.MLP", "latent_dim": 3}, "'latent_dim'"),
        ("train.json", {"sede": 1}, "'sede'"),
        ("train.json", {"model": {"prior": {"_target_": "cvae.priors.Flow", "x": 1}}}, "'x'"),
        ("trainer.json", {"devices": 1.5}, "1.5"),
        ("train.json", {"model": "vae"}, "'vae'"),
        ("train.json", {"model": {"latent": 3}}, "'latent'"),
        ("train.json", {"model": {"latent_dim": "abc"}}, "'abc'"),
        ("train.json", {"data": {"batch_size": 0}}, "0"),
        ("train.json", {"callbacks": {"figures": {"every_n_epoch": 2}}}, "'every_n_epoch'"),
        ("callbacks.json", {"ema": {"_target_": "cvae.callbacks.EMA", "decay": 2}}, "2"),
    ],
)
def test_mistakes_are_reported(name: str, content: dict[str, Any], fragment: str) -> None:
    (message,) = find_errors(name, content)
    assert fragment in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.json", {"_target_": "torch.optim.AdamW", "lr": "${model.beta}"}),
        ("model.network.json", {"_target_": "my_package.Net", "anything": [1]}),
        ("train.json", {"model": {"network": {"hidden_dim": 8}}}),
        ("trainer.json", {"max_epochs": 3}),
        ("model.json", {"_target_": "cvae.models.VAE", "network": "${other.network}"}),
        ("callbacks.json", {"ema": "${other.ema}"}),
        ("callbacks.json", {"figures": False}),
    ],
)
def test_interpolations_and_your_own_classes_are_accepted(
    name: str, content: dict[str, Any]
) -> None:
    assert find_errors(name, content) == []


def test_schemas_describe_the_arguments_that_users_set() -> None:
    schema = json.loads((FOLDER / "model.network.json").read_text())
    (mlp,) = (c["then"] for c in schema["allOf"][:-1] if "MLP" in json.dumps(c["if"]))
    assert "width" in mlp["properties"]["hidden_dim"]["description"]
    assert "latent_dim" not in mlp["properties"]  # the model passes it


@pytest.mark.parametrize("first", [True, False])
def test_hydra_reads_the_package_only_above_other_comments(tmp_path: Path, first: bool) -> None:
    """Hydra silently ignores ``# @package`` below another comment."""
    lines = ["# @package _global_", f"{MARK}x.json"]
    (tmp_path / "group").mkdir()
    text = "\n".join([*(lines if first else lines[::-1]), "value: 1\n"])
    (tmp_path / "group" / "one.yaml").write_text(text)
    (tmp_path / "top.yaml").write_text("defaults: [group: one, _self_]\n")
    with hydra.initialize_config_dir(str(tmp_path), **INITIALIZE_OPTIONS):
        found = hydra.compose("top")
    assert found == ({"value": 1} if first else {"group": {"value": 1}})


def test_the_schema_comment_is_written_below_the_package_comment() -> None:
    spec = importlib.util.spec_from_file_location("schemas_script", paths.ROOT / "docs/schemas.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for text in ("# @package model\n# none\na: 1\n", "# none\na: 1\n"):
        with_comment = script.set_header(text, f"{MARK}x.json")
        assert script.set_header(with_comment, None) == text
        assert with_comment.splitlines()[text.startswith("# @package")] == f"{MARK}x.json"
    for text in ("\n# @package model\na: 1\n", "#@package model\na: 1\n"):
        rows = script.set_header(text, f"{MARK}x.json").splitlines()
        assert rows.index(f"{MARK}x.json") == 1 + next(i for i, r in enumerate(rows) if r)

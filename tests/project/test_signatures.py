"""Tests that the arguments of users' classes are read from their source, without an import."""

import inspect
import textwrap
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest

from harness.config import checks, libraries, schemas
from harness.config.signatures import COMPUTED, REQUIRED, NotFoundError, Signature, signature
from tests import PACKAGE

_numbers = count()


@pytest.fixture
def read_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Signature | None]:
    """Return a function that reads a class from the text of a module."""
    monkeypatch.chdir(tmp_path)

    def read_signature(text: str, name: str) -> Signature | None:
        module = f"written_{next(_numbers)}"  # parsed files are cached by name
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(text))
        return signature(f"{module}.{name}")

    return read_signature


BASE = """
    class Mixin: ...
    class Base:
        def __init__(self, shape, width: int = 8): ...
    class Child(Mixin, Base):
"""


@pytest.mark.parametrize(
    ("text", "names", "takes_any_name"),
    [
        ("(self, *args, **kwargs): super().__init__(*args, **kwargs)", "shape width", False),
        ("(self, a, *r, **k): super().__init__(*r, **k)", "a shape width", False),
        ("(self, s, *r, a=1, **k): super().__init__(s, *r, **k)", "s width a", False),
        ("(self, *args, a=1, **k): super().__init__(*args, **k)", "shape width a", False),
        ("(self, **k): super().__init__(width=3, **k)", "shape", False),
        ("(self, **k): super(Child, self).__init__(**k)", "shape width", False),
        ("(self, **k): Base.__init__(self, **k)", "shape width", False),
        ("(self, **k): Base.__init__(self, 3, **k)", "width", False),
        ("(self, **k): k.pop('a'); super().__init__(**k)", "", True),
        ("(self, **k): k['a'] = 1; super().__init__(**k)", "", True),
        ("(self, a=1, **k): ...", "a", True),
    ],
)
def test_arguments_forwarded_to_the_base_class_are_read(
    read_signature: Callable[[str, str], Signature], text: str, names: str, takes_any_name: bool
) -> None:
    result = read_signature(f"{BASE}        def __init__{text}", "Child")
    assert (list(result.parameters), result.takes_any_name) == (names.split(), takes_any_name)


def test_a_mixin_without_a_constructor_is_skipped(
    read_signature: Callable[[str, str], Signature],
) -> None:
    assert list(read_signature(f"{BASE}        x = 1", "Child").parameters) == ["shape", "width"]


def test_fields_of_a_dataclass_are_its_arguments(
    read_signature: Callable[[str, str], Signature],
) -> None:
    text = """
        import dataclasses
        from dataclasses import dataclass, field, KW_ONLY
        from typing import ClassVar
        class Plain:
            def __init__(self, x): ...
        @dataclass
        class One(Plain):
            a: int
            b: int = field(default=2)
            c: list[int] = dataclasses.field(default_factory=list)
            d: int = field(init=False)
            e: "ClassVar[int]" = 3
            _: KW_ONLY
            f: int = field(kw_only=True)
        @dataclass
        class Two(One):
            def __init__(self, g): ...
    """
    one = read_signature(text, "One").parameters
    assert list(one) == ["a", "b", "c", "f"]
    assert [name for name, p in one.items() if p.default is REQUIRED] == ["a", "f"]
    assert one["b"].default == 2
    assert list(read_signature(text, "Two").parameters) == ["g"]


@pytest.mark.parametrize("decorator", ["attrs.define", "attr.s(auto_attribs=True)"])
def test_constructors_that_a_library_makes_are_not_read(
    read_signature: Callable[[str, str], Signature | None], decorator: str
) -> None:
    text = f"import attr, attrs\n@{decorator}\nclass One:\n    a: int = 1\n"
    assert read_signature(text, "One") is None


def test_arguments_of_class_and_static_methods_are_read(
    read_signature: Callable[[str, str], Signature],
) -> None:
    text = """
        class One:
            @classmethod
            def make(cls, a, b=1, **k): ...
            @staticmethod
            def made(a): ...
    """
    assert list(read_signature(text, "One.make").parameters) == ["a", "b"]
    assert list(read_signature(text, "One.made").parameters) == ["a"]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("dict[int, float]", {0: 4.0}, 3),
        ("Below", "DEFAULT", None),
        ("Node", {"a": 1}, "DEFAULT"),
        ("tuple[()]", [], 3),
        ("torch.device", "cpu", None),
        ("Annotated[str, Field(pattern='^(?=a)')]", "ab", "b"),
        ("Annotated[int, Ge(0.5)]", "any value", None),
        ("Literal[()]", "any value", None),
    ],
)
def test_values_are_checked_against_unusual_annotations(
    read_signature: Callable[[str, str], Signature], annotation: str, good: object, bad: object
) -> None:
    text = f"""
        import enum, torch
        from typing import Annotated, Literal
        from annotated_types import Ge
        from pydantic import Field
        class Above(enum.Enum): ...
        class Below(Above): ...
        class Node: ...
        class One:
            def __init__(self, a: {annotation}): ...
    """
    model = schemas.arguments_model("One", read_signature(text, "One").parameters)
    assert not list(schemas.wrong_values(model, {"a": good}))
    if bad is not None:
        assert list(schemas.wrong_values(model, {"a": bad}))


def test_classes_bound_by_any_statement_are_found(
    read_signature: Callable[[str, str], Signature | None],
) -> None:
    text = """
        class One:
            def __init__(self, a): ...
        A, B = One, One
        C = D = One
        with open("x"):
            class E(One): ...
        for name in "x":
            class F(One): ...
    """
    for name in "AB":
        assert read_signature(text, name) is None  # not readable from source; imported later
    for name in "CDEF":
        result = read_signature(text, name)
        assert result is not None
        assert list(result.parameters) == ["a"]
    with pytest.raises(NotFoundError, match="has no G"):
        read_signature(text, "G")


def test_a_class_may_have_the_name_of_its_base(
    read_signature: Callable[[str, str], Signature | None],
) -> None:
    text = """
        from collections import UserDict
        class UserDict(UserDict):
            def __init__(self, a, **kwargs): super().__init__(**kwargs)
    """
    result = read_signature(text, "UserDict")
    assert result is not None
    assert (list(result.parameters), result.takes_any_name) == (["a"], True)


def test_a_misspelt_module_is_named() -> None:
    meant = rf"{PACKAGE} has no lightning_modul; did you mean {PACKAGE}.lightning_module\?$"
    with pytest.raises(NotFoundError, match=meant):
        signature("cvae.lightning_modul.VAEModule")


def test_nodes_in_lists_are_checked() -> None:
    node = {"all": [{"_target_": "cvae.networks.MLP", "hidden_dim": 0}]}
    assert "net.all[0].hidden_dim=0: must be an integer from 1 to 65536" in list(
        checks.check_arguments(node, "net")
    )


DIAMOND = """
    class Root:
        def __init__(self, a): ...
    class Left(Root):
        def describe(self): ...
    class Right(Root):
        def __init__(self, b, **kwargs): super().__init__(**kwargs)
    class Empty:
        def __init__(self): ...
    class Child(Left, Right): ...
    class Bare(Empty, Root): ...
    class Cooperative(Right, Left):
        def __init__(self, c, **kwargs): super().__init__(**kwargs)
"""


@pytest.mark.parametrize(
    ("name", "names"), [("Child", "b a"), ("Bare", ""), ("Cooperative", "c b a")]
)
def test_constructors_are_found_in_the_resolution_order(
    read_signature: Callable[[str, str], Signature], name: str, names: str
) -> None:
    """The harness finds the constructor that Python calls."""
    assert list(read_signature(DIAMOND, name).parameters) == names.split()


UNREADABLE = """
    import functools, sys
    from dataclasses import dataclass
    def with_seed(f):
        return lambda *a, seed=0, **k: f(*a, rng=seed, **k)
    def replaces(cls): return cls
    def other(self, b): ...
    try:
        import no_such_package
        class Conditional:
            def __init__(self, window): ...
    except ImportError:
        class Conditional:
            def __init__(self): ...
    class Decorated:
        @with_seed
        def __init__(self, rng): ...
    class Assigned:
        __init__ = other
    class Versioned:
        if sys.version_info > (3, 11):
            def __init__(self, a): ...
        else:
            def __init__(self, b): ...
    @replaces
    class Replaced:
        def __init__(self, a): ...
    @with_seed
    def build(rng): ...
"""


@pytest.mark.parametrize(
    "name", ["Conditional", "Decorated", "Assigned", "Versioned", "Replaced", "build"]
)
def test_arguments_that_the_source_does_not_show_are_not_checked(
    read_signature: Callable[[str, str], Signature | None], name: str
) -> None:
    result = read_signature(UNREADABLE, name)
    assert result is None or (result.takes_any_name and not result.parameters)


def test_a_dataclass_without_a_constructor_takes_that_of_its_base(
    read_signature: Callable[[str, str], Signature],
) -> None:
    text = """
        from dataclasses import dataclass
        class Base:
            def __init__(self, a): ...
        @dataclass(init=False)
        class One(Base):
            b: int = 1
    """
    assert list(read_signature(text, "One").parameters) == ["a"]


@pytest.mark.parametrize(
    ("annotation", "bad"), [("Literal[ACTS]", "tanh"), ("Literal[Color.RED]", None)]
)
def test_literals_may_name_constants(
    read_signature: Callable[[str, str], Signature], annotation: str, bad: str | None
) -> None:
    text = f"""
        import enum
        from typing import Literal
        ACTS = ("relu", "gelu")
        class Color(enum.Enum):
            RED = 1
        class One:
            def __init__(self, a: {annotation}): ...
    """
    model = schemas.arguments_model("One", read_signature(text, "One").parameters)
    assert not list(schemas.wrong_values(model, {"a": "gelu"}))
    assert bool(list(schemas.wrong_values(model, {"a": bad}))) == (bad is not None)


def test_a_misspelt_class_in_a_module_with_star_imports_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"did you mean torch.nn.ReLU\?$"):
        signature("torch.nn.Relu")


@pytest.mark.parametrize("module", ["torch.optim", "torch.optim.lr_scheduler"])
def test_ranges_accept_the_defaults_of_libraries(module: str) -> None:
    names = [n for n, v in vars(import_module(module)).items() if inspect.isclass(v)]
    num_checked = 0
    for name in names:
        arguments = checks.arguments_of(f"{module}.{name}")
        if arguments is None:
            continue
        defaults = {
            key: list(p.default) if isinstance(p.default, tuple) else p.default
            for key, p in arguments.parameters.items()
            if p.default not in (REQUIRED, COMPUTED)
        }
        assert not list(schemas.wrong_values(arguments.model, defaults)), name
        num_checked += len(defaults)
    assert num_checked > 50


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("torch.optim.adam.Adam", "betas"),
        ("lightning.pytorch.callbacks.early_stopping.EarlyStopping", "mode"),
        ("lightning.pytorch.Trainer", "precision"),
    ],
)
def test_ranges_are_found_by_every_name_of_a_class(target: str, name: str) -> None:
    assert name in libraries.ranges(target)

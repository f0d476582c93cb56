"""Text is untrusted: parsing it runs no code, ends soon, and refuses what is wrong."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ir.errors import ParseError, VerificationError
from ir.expressions import EXPRESSION_FUNCTIONS
from ir.text.literals import parse_attribute, parse_type
from ir.text.parser import parse_program
from ir.verify import verify

PROGRAM = """program "p" {
  STATEMENT
  graph(%x : f32[2, 3]) {
    return %x
  }
}"""


def statement(text: str) -> str:
    return PROGRAM.replace("STATEMENT", text)


LARGE = [
    "9**9**9**9",
    "9**99999",
    "2**(s0 + 10**12)",
    "(s0 + 1)**9999",
    "(s0 + s1 + s2 + s3)**64",
    "*".join(f"(s{i} + 1)" for i in range(30)),
    "+".join(f"s{i}" for i in range(3000)),
    "floor(exp(1000000000))",
    "floor(exp(exp(20)))",
    "LShift(1, 1000000000)",
    "PowByNatural(9, 1000000000)",
    f"Max({', '.join(f's{i}' for i in range(3000))})",
    "9" * 5000,
    "-" + "9" * 5000,
    "9" * 70 + "*" + "9" * 70,
    "(" * 20_000,
    "-" * 20_000 + "1",
    "2**" * 20_000 + "1",
    "sqrt(" * 20_000,
]


@pytest.mark.parametrize("text", LARGE, ids=[text[:24] for text in LARGE])
@pytest.mark.parametrize(
    "read",
    [
        parse_attribute,
        lambda text: parse_type(f"f32[{text}]"),
        lambda text: parse_type(f"int({text})"),
        lambda text: parse_program(statement(f"require Eq({text}, s0)")),
    ],
    ids=["attribute", "dimension", "scalar", "constraint"],
)
def test_what_stands_for_too_much_is_refused_at_once(text: str, read: Callable[[str], object]) -> None:
    begin = time.process_time()
    with pytest.raises(ParseError, match=r"line \d+, column \d+") as info:
        read(text)
    assert time.process_time() - begin < 10
    assert info.value.line
    assert info.value.column


@pytest.mark.parametrize(
    "text",
    [
        'argument "x" = ' + "[" * 20_000,
        'argument "x" = ' + "list(" * 20_000,
        'argument "x" = ' + "{1: " * 20_000,
        "in_spec " + "[" * 20_000,
        "in_spec " + "{1: (" * 5000,
        "in_spec " + "collections.deque(" * 20_000,
        "in_spec collections.deque() with " + "[" * 20_000,
        f"symbol n in [0, {'9' * 5000}]",
        f'argument "x" = input {"9" * 5000}',
        'constant %c : f32[2] derived_from ["x"] program "q" { ' * 2000,
        "buffer %b : f32[2]@cuda:" + "9" * 50,
    ],
    ids=lambda text: text[:24],
)
def test_statements_nest_only_so_deep(text: str) -> None:
    with pytest.raises(ParseError, match="line "):
        parse_program(statement(text))


def test_bodies_and_locations_nest_only_so_deep() -> None:
    body = "%y = fused.a(%x) : f32[2] body(%x : f32[2]) {\n"
    with pytest.raises(ParseError, match="nested more than 100 deep"):
        parse_program(statement("").replace("return", body * 2000 + "return"))
    with pytest.raises(ParseError, match="nested more than 100 deep"):
        parse_program(f'program "p" {"loc(merged [" * 20_000}')


def test_what_occurs_is_not_refused() -> None:
    assert parse_attribute(str(2**63 - 1)) == 2**63 - 1
    assert parse_attribute(f"-{2**63}") == -(2**63)
    assert parse_attribute("(" * 50 + "1" + ")" * 50) == 1
    assert parse_attribute("[" * 50 + "]" * 50) is not None
    for text in ("(s0 + 1)**64", "+".join(f"s{i}" for i in range(100)), "2**s0", "(s0//2)" + "//2" * 60, "exp(2)"):
        parse_attribute(text)


@pytest.mark.parametrize("name", sorted(EXPRESSION_FUNCTIONS))
def test_functions_take_what_they_take(name: str) -> None:
    for arguments in ("", "0", "-1, -1", "10**19, 10**19", "1e308", "s0, 0", "s0, s1, s2", "oo", "nan", "inf, 1/3"):
        with suppress(ParseError):
            parse_attribute(f"{name}({arguments})")


@pytest.mark.parametrize("text", ["-(1 < 2)", "(s0 > 1) + 1", "oo - oo < 1", "opaque(3)", "complex([])", "{1: 2}"])
def test_operators_and_constructors_take_what_they_take(text: str) -> None:
    with pytest.raises(ParseError, match="line 1, column"):
        parse_attribute(text)


def test_no_text_runs_code(tmp_path: Path) -> None:
    file = tmp_path / "written"
    code = f"open({str(file)!r}, 'w').close()"
    for text in (f'expr("{code}")', f'complex("{code}")', f'opaque("{code}")', f'device("{code}")'):
        with suppress(ParseError):
            parse_attribute(text)
    assert not file.exists()


def test_no_text_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own reader of tree specifications would import what they name."""
    (tmp_path / "imported_by_text.py").write_text("class Kind: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for spec in (
        "imported_by_text.Kind(*)",
        "imported_by_text.Kind(x=*)",
        '"imported_by_text.Kind"{"a": *}',
        "collections.defaultdict{} with imported_by_text.Kind",
        "{imported_by_text.Kind.A: *}",
        "collections.deque() with imported_by_text.Kind.A",
        "os.system(*)",
        "collections.defaultdict{} with os.system",
    ):
        with pytest.raises(ParseError, match="line "):
            parse_program(statement(f"in_spec {spec}"))
    assert "imported_by_text" not in sys.modules
    for text in ("torch.imported_by_text", "torch._inductor", "torch.nn.functional"):
        with pytest.raises(ParseError, match="is not a dtype"):
            parse_attribute(text)


CALL = """program "p" {
  in_spec ((*,), {})
  argument "x" = input 0
  graph(%x : f32[2, 3]) {
    %y = aten.relu(%x) : f32[2, 3]
    return %y
  }
}"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aten.relu(%x)", "aten.reshape(%x) {shape=[nan, 2]}"),
        ("aten.relu(%x)", 'aten.adaptive_avg_pool2d(%x) {output_size=["r", 5]}'),
        ("aten.relu(%x)", 'aten.view(%x) {size=["a", 2]}'),
        ("%x : f32[2, 3]", "%x : quint8[2, 3]"),
        (
            "aten.relu(%x) : f32[2, 3]",
            "fused.foo(%x) {parts=3} : f32[2, 3] body(%a : f32[2, 3]) { %b = aten.relu(%a) return %b }",
        ),
        (
            "aten.relu(%x) : f32[2, 3]",
            "fused.foo(%x) {quantization_points=1} : f32[2, 3] body(%a : f32[2, 3]) { return %a }",
        ),
        ("in_spec ((*,), {})", "in_spec *"),
        ("in_spec ((*,), {})", "in_spec [(*,), {}]"),
        ("in_spec ((*,), {})", "in_spec ((), (*,))"),
        ("in_spec ((*,), {})", "in_spec ((), {1: *})"),
        ("in_spec ((*,), {})", 'in_spec ((), collections.OrderedDict{"x": *})'),
    ],
)
def test_the_verifier_refuses_what_parses(old: str, new: str) -> None:
    verify(parse_program(CALL))
    assert old in CALL
    program = parse_program(CALL.replace(old, new))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the dtypes of quantization
        with pytest.raises(VerificationError):
            verify(program)


def test_no_size_is_imaginary() -> None:
    with pytest.raises(ParseError, match="not a real number"):
        parse_type("f32[(0 - a)**(1/2)]")

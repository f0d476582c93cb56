"""What a pass or its options raise: an error of ours that names the pass and keeps the remedy."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest

from ir.errors import GraphwrightError, InputError, ParseError, PassError
from passes.manager.instruments import VerifyEach
from passes.manager.manager import Pass, PassContext, PassManager, run_pass
from tests.passes.building import f32, program


@attrs.frozen
class Faulty(Pass):
    """Raises in one of its methods."""

    name: ClassVar[str] = "faulty"
    method: str = attrs.field(default="run")
    error: type[Exception] = ZeroDivisionError

    @method.validator
    def _check_method(self, attribute: Any, value: str) -> None:
        if value not in ("requires", "run", "ensures"):
            raise InputError(f"there is no method {value}", remedy="name a method of a pass")

    def _raise(self, method: str) -> None:
        if self.method == method:
            raise self.error("oops")

    def requires(self, program: Any) -> None:
        self._raise("requires")

    def run(self, program: Any, context: PassContext) -> None:
        self._raise("run")

    def ensures(self, program: Any) -> None:
        self._raise("ensures")


@pytest.mark.parametrize("method", ["requires", "run", "ensures"])
def test_what_a_pass_raises_names_it(method):
    p = program([f32(2)], lambda b, x: b.relu(x))
    with pytest.raises(PassError, match="pass `faulty` raised ZeroDivisionError: oops") as caught:
        run_pass(Faulty(method), p, PassContext())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(InputError, match="oops") as ours:
        run_pass(Faulty(method, InputError), p, PassContext())
    assert any("in pass `faulty" in note for note in ours.value.__notes__)


def test_the_remedy_of_an_option_is_kept():
    with pytest.raises(ParseError, match="there is no method walk") as caught:
        PassManager.parse("faulty{method=walk}", passes=[Faulty])
    assert caught.value.remedy == "name a method of a pass"
    assert "remedy: name a method of a pass" in str(caught.value)


def test_a_change_behind_the_revision_is_an_error_of_the_pass():
    @attrs.frozen
    class Hidden(Pass):
        name: ClassVar[str] = "hidden"

        def run(self, program: Any, context: PassContext) -> None:
            revision = program.graph.revision
            program.graph.first.set_attribute("other", 3)
            program.graph.revision = revision

    p = program([f32(2)], lambda b, x: b.call("aten.mul.Scalar", x, 2))
    with pytest.raises(GraphwrightError, match="behind the revision counter's back") as caught:
        run_pass(Hidden(), p, PassContext(instruments=(VerifyEach(check_unchanged=True),)))
    assert type(caught.value) is PassError


def test_the_caret_stands_below_its_character_behind_a_tab():
    with pytest.raises(ParseError) as caught:
        PassManager.parse("faulty,\n\tfaulty{methd=run}", passes=[Faulty])
    assert "line 2, column 9" in caught.value.message
    assert caught.value.message.endswith("\n  \tfaulty{methd=run}\n  \t       ^")

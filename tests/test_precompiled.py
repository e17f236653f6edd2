"""Programs compiled side by side before they are called: each once, in one order, and really the ones that run."""

import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from ibtpo import precompiled
from ibtpo.precompiled import Precompiled, abstract, compile_all
from tests.compilations import compilations


def scaled(factor, x, y, *, power):
    return factor * x**power + y, jnp.sum(y)


def make():
    """A function whose programs differ by the shape of y; x is given away."""
    jitted = jax.jit(scaled, static_argnums=0, static_argnames="power", donate_argnums=1)
    return Precompiled(jitted, 3, key=lambda x, y, *, power: (x.shape, power))


def test_what_was_compiled_is_what_runs_with_arrays_given_away():
    function, x, y = make(), jnp.arange(5.0), np.ones(5, np.float32)
    assert abstract({"x": x})["x"] == jax.ShapeDtypeStruct((5,), jnp.float32)
    with compilations() as found:
        compile_all({"some": [function.program(abstract(x), y, power=2)]})
    assert found == ["scaled"]
    with compilations() as found:
        out, total = function(x, y, power=2)
    assert found == []
    assert x.is_deleted() and float(total) == 5
    np.testing.assert_array_equal(out, 3 * np.arange(5.0) ** 2 + 1)


def test_a_call_that_nobody_foresaw_is_compiled_when_it_comes():
    function = make()
    compile_all({"some": [function.program(jnp.ones(4), np.ones(4, np.float32), power=2)]})
    for x, power, expected in ((jnp.ones(6), 2, 4), (jnp.full(4, 2.0), 3, 25)):
        y = np.ones(x.shape, np.float32)
        with compilations() as found:
            out, _ = function(x, y, power=power)
        assert "scaled" in found
        np.testing.assert_array_equal(out, np.full(x.shape, expected))


def test_what_is_compiled_later_is_said_once_with_its_seconds(capsys, monkeypatch):
    monkeypatch.setattr(precompiled, "_SAID", -1.0)
    function = make()
    compile_all({"some": [function.program(jnp.ones(4), np.ones(4, np.float32), power=2)]})
    for size in (4, 6, 6, 4):
        function(jnp.ones(size), np.ones(size, np.float32), power=2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and re.fullmatch(r"compiling one more program, not foreseen at the start: \d+ s", said[0])


def test_arguments_of_another_type_are_no_end_and_said(caplog):
    function = make()
    compile_all({"some": [function.program(jnp.ones(4), np.ones(4, np.float32), power=2)]})
    x = jnp.full(4, 2, jnp.int32)
    with caplog.at_level("WARNING"):
        out, _ = function(x, np.ones(4, np.int32), power=2)
        function(jnp.full(4, 2, jnp.int32), np.ones(4, np.int32), power=2)
    assert out.dtype == jnp.int32 and out.tolist() == [13] * 4
    assert caplog.text.count("compiled once more") == 1


def test_equal_programs_of_several_groups_are_compiled_once_and_counted_in_the_first():
    one, other = make(), make()
    other.jitted = one.jitted
    x, y = jax.ShapeDtypeStruct((7,), jnp.float32), np.ones(7, np.float32)
    groups = {
        "sampler": [one.program(x, y, power=2), one.program(x, y, power=4)],
        "evaluation": [other.program(x, y, power=2)],
        "update": [other.program(x, y, power=5)],
        "nothing": [],
    }
    with compilations() as found:
        line = compile_all(groups)
    assert found == ["scaled"] * 3
    assert re.fullmatch(r"compiling 3 programs \(sampler 2, update 1\): \d+ s", line)
    with compilations() as found:
        for function, powers in ((one, (2, 4)), (other, (2, 5))):
            for power in powers:
                function(jnp.ones(7), y, power=power)
    assert "scaled" not in found


class Stub:
    """A function whose compiler is a function of the test."""

    def __init__(self, compiler):
        self.compiler, self.jitted, self.static, self.taken = compiler, object(), (), []

    def program(self, number):
        return precompiled.Program(self, (np.int32(number),), {"number": number})

    def lower(self, _, number):
        stub = self

        class Lowered:
            def compile(self):
                return stub.compiler(number)

        return Lowered()

    def take(self, program, compiled):
        self.taken.append(compiled)


@pytest.mark.parametrize("cores", [1, 3])
def test_programs_are_begun_in_the_order_given(monkeypatch, cores):
    """Processes that wait for each other's compilers count on it: whoever is behind is at work on what the others
    wait for."""
    begun, done = [], []

    def compiler(number):
        begun.append(number)
        assert len(begun) - len(done) <= cores
        done.append(number)
        return number

    monkeypatch.setattr(precompiled, "_cores", lambda: cores)
    stub = Stub(compiler)
    compile_all({"first": [stub.program(n) for n in range(20)], "second": [stub.program(n) for n in range(20, 30)]})
    assert sorted(stub.taken) == list(range(30))
    # Of as many at a time as there are cores, which says its number first is chance.
    assert all(abs(number - place) < cores for place, number in enumerate(begun))


def test_an_error_of_the_compiler_ends_the_start_and_names_what_was_compiled(monkeypatch):
    monkeypatch.setattr(precompiled, "_cores", lambda: 1)
    begun = []

    def compiler(number):
        begun.append(number)
        if number == 2:
            raise MemoryError("RESOURCE_EXHAUSTED: 3 GiB")
        return number

    stub = Stub(compiler)
    with pytest.raises(MemoryError, match="RESOURCE_EXHAUSTED: 3 GiB") as raised:
        compile_all({"update": [stub.program(n) for n in range(5)]})
    assert raised.value.__notes__ == ["while a program of the update was compiled, before anything was run"]
    assert 2 in begun and 2 not in stub.taken

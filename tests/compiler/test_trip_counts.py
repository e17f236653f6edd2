"""How often loops run: as the compiler says, as a counter says, or as told."""

import jax
import jax.numpy as jnp

from ibtpo.compiler.costs import analyse
from tests.compiler.programs import ENTRY, LOOP, analysed, compiled, module, scanned


def test_a_scan_costs_its_trips():
    program = analysed(scanned, (32, 64), (5, 64, 64))
    expected = 5 * 2 * 32 * 64 * 64
    assert program.total.flops == expected
    assert program.total.flops_by_depth == {1: expected}
    (loop,) = program.loops
    assert (loop.trips, loop.depth) == (5, 0)
    assert loop.body.flops == expected / 5


def test_trips_are_found_without_the_compiler_saying_them():
    """TPU programs carry no trip counts; the same module without them must give the same."""
    text = compiled(scanned, (32, 64), (5, 64, 64)).as_text()
    start = text.index("backend_config", text.index(" while("))
    stripped = text[:start].rstrip(", ") + text[text.index("\n", start) :]
    assert "known_trip_count" in text and "known_trip_count" not in stripped
    assert analyse(stripped).total == analyse(text).total


def test_nested_loops_multiply():
    def outer(x, weights):
        return jax.lax.fori_loop(0, 3, lambda i, x: scanned(x, weights), x)

    total = analysed(outer, (32, 64), (5, 64, 64)).total
    assert total.flops_by_depth == {2: 3 * 5 * 2 * 32 * 64 * 64}


def until_small(x, w):
    return jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: x @ w, x)


def test_a_loop_that_ends_on_data_counts_as_often_as_told():
    shapes = (32, 64), (64, 64)
    (loop,) = analysed(until_small, *shapes).loops
    assert loop.trips is None
    assert analysed(until_small, *shapes).total.flops == 2 * 32 * 64 * 64
    assert analysed(until_small, *shapes, unknown_trips=7).total.flops == 7 * 2 * 32 * 64 * 64


def test_trips_of_a_counter_that_nothing_bounds_are_unknown():
    unbounded = [part.replace("constant(1)", "parameter(1)") for part in LOOP]
    (loop,) = analyse(module(ENTRY, *unbounded)).loops
    assert loop.trips is None


def repeated(n, x, weights):
    """`scanned` as often as a traced number says."""
    return jax.lax.fori_loop(0, n, lambda i, x: scanned(x, weights), x)


ARGUMENTS = (
    jax.ShapeDtypeStruct((), jnp.int32),
    jax.ShapeDtypeStruct((64, 64), jnp.float32),
    jax.ShapeDtypeStruct((5, 64, 64), jnp.float32),
)
PRODUCT = 2 * 64**3


def text_of(fn):
    return jax.jit(fn).lower(*ARGUMENTS).compile().as_text()


def test_a_loop_of_a_traced_length_takes_the_number_given_and_those_in_it_their_own():
    program = analyse(text_of(repeated), unknown_trips=7)
    assert [(loop.trips, loop.given) for loop in program.loops] == [(None, True), (5, False)]
    assert program.total.flops_by_depth == {2: 7 * 5 * PRODUCT}
    assert program.counted_once == []


def test_a_loop_that_ends_on_data_inside_one_of_a_traced_length_counts_once():
    def both(n, x, weights):
        return jax.lax.fori_loop(0, n, lambda i, x: until_small(scanned(x, weights), weights[0]), x)

    program = analyse(text_of(both), unknown_trips=7)
    assert program.total.flops_by_depth == {2: 7 * 5 * PRODUCT + 7 * 1 * PRODUCT}
    (inner,) = program.counted_once
    assert (inner.trips, inner.given, inner.depth) == (None, False, 1)


def test_a_loop_of_known_length_around_leaves_the_number_to_the_loop_inside():
    def epochs(n, x, weights):
        return jax.lax.fori_loop(0, 3, lambda i, x: repeated(n, x, weights), x)

    program = analyse(text_of(epochs), unknown_trips=7)
    assert program.total.flops_by_depth == {3: 3 * 7 * 5 * PRODUCT}
    assert program.counted_once == []


def test_without_a_number_such_loops_count_once_and_say_so():
    program = analyse(text_of(repeated))
    assert program.total.flops_by_depth == {2: 5 * PRODUCT}
    assert [loop.depth for loop in program.counted_once] == [0]

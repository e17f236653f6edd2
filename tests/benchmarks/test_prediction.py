"""The benchmark of the simulated device: its fit, and that it simulates what the engine did."""

import pytest

from benchmarks import prediction


def test_the_fit_finds_the_price_of_a_step():
    per_step, per_token = {4: 0.002, 16: 0.005}, 1e-6
    chunks = [(4, 32, 1000.0), (16, 32, 9000.0), (16, 8, 700.0), (4, 20, 5.0)]
    seconds = {"decode": [n * per_step[width] + live * per_token for width, n, live in chunks]}
    for number, kind in enumerate(("prefill", "start", "release", "recompute")):
        seconds[kind] = [number, number + 2]
    price = prediction.Fitted(seconds, chunks)
    assert price.per_step == pytest.approx(per_step) and price.per_token == pytest.approx(per_token)
    assert price.step(16, 500) == pytest.approx(0.0055) and price.step(8, 0) == pytest.approx(0.002)
    assert (price.prefill(8, 32), price.start(3), price.release(), price.recompute(9)) == (1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="3 chunks were timed, 4 simulated"):
        prediction.Fitted(seconds | {"decode": seconds["decode"][:3]}, chunks)


@pytest.mark.slow
def test_what_is_simulated_is_what_the_engine_did():
    job = dict(prediction.QUICK, questions=4, slots=4, prompt_tokens=8, new_tokens=16, median_tokens=8)
    found = prediction.measure("tree", dict(strategy="ib", initial=2, rounds=3), job, 1, lambda text: None)
    assert found["responses"] == 2 * 4  # of the half that is predicted
    assert found["predicted_s"] > 0 and found["measured_s"] > 0 and set(found["step_ms"]) <= {1, 2, 4}
    assert found["predicted_over_measured"] == found["each"][0]

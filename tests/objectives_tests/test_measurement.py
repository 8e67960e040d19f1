import json

import pytest

from objectives import Measurement


def test_a_measurement_survives_json() -> None:
    measurement = Measurement(4.5, "ms", "eager torch", low=4.25, high=5.0, samples=20)
    assert Measurement.from_dict(json.loads(json.dumps(measurement.to_dict()))) == measurement


def test_quartiles_that_do_not_exist_are_left_out() -> None:
    measurement = Measurement(7.0, "MACs", "closed form")
    assert measurement.to_dict() == {"value": 7.0, "unit": "MACs", "source": "closed form", "samples": 1}
    assert Measurement.from_dict(measurement.to_dict()) == measurement


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["value", "low", "high"])
def test_a_number_that_is_not_finite_is_refused(field: str, number: float) -> None:
    with pytest.raises(ValueError, match=rf"'nvml' with {field} -?(nan|inf).*raise MeasurementUnavailable"):
        Measurement(**{"value": 1.0, "unit": "mJ", "source": "nvml", field: number})


def test_quartiles_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="low must not exceed high"):
        Measurement(1.0, "ms", "eager torch", low=2.0, high=1.0)


def test_a_value_without_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Measurement(1.0, "ms", "eager torch", samples=0)

"""Where the coefficients in kernels/simd/coefficients.py come from: minimax fits by Remez's exchange algorithm.

Run as a program it prints that file's tables; test_math.py holds the tables to a fresh fit.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mpmath import cos, erfc, exp, expm1, log, lu_solve, matrix, mp, mpf, pi, sqrt, tanh

mp.dps = 50
Function = Callable[[mpf], mpf]


@dataclass(frozen=True)
class Fit:
    """A polynomial to find: degree, interval, and a weight that turns its error into a relative error of the result."""

    function: Function
    weight: Function
    low: mpf
    high: mpf
    degrees: dict[str, int]


def remez(function: Function, weight: Function, low: mpf, high: mpf, degree: int) -> tuple[list[mpf], mpf]:
    """Coefficients (lowest first) that make the largest weighted error least, and that error."""
    unknowns, points = degree + 2, 1500
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = [middle - half * cos(pi * i / (unknowns - 1)) for i in range(unknowns)]
    grid = [middle - half * cos(pi * i / points) for i in range(points + 1)]
    wanted, weights = [function(x) for x in grid], [weight(x) for x in grid]
    for _ in range(12):
        equations, right = matrix(unknowns, unknowns), matrix(unknowns, 1)
        for i, x in enumerate(nodes):
            for power in range(degree + 1):
                equations[i, power] = x**power
            equations[i, degree + 1] = (-1) ** i / weight(x)
            right[i] = function(x)
        solution = lu_solve(equations, right)
        coefficients = [solution[power] for power in range(degree + 1)]
        errors = [
            (mp.polyval(coefficients[::-1], x) - value) * scale
            for x, value, scale in zip(grid, wanted, weights, strict=True)
        ]
        extremes: list[int] = []
        for i, error in enumerate(errors):
            if not extremes or (error > 0) != (errors[extremes[-1]] > 0):
                extremes.append(i)
            elif abs(error) > abs(errors[extremes[-1]]):
                extremes[-1] = i
        while len(extremes) > unknowns:
            extremes.pop(0 if abs(errors[extremes[0]]) < abs(errors[extremes[-1]]) else -1)
        nodes = [grid[i] for i in extremes]
        largest = max(abs(error) for error in errors)
        if len(nodes) < unknowns or largest < abs(solution[degree + 1]) * mpf("1.01"):
            break
    return coefficients, largest


def _exp_rest(r: mpf) -> mpf:
    return mpf(1) / 2 + r / 6 if abs(r) < mpf("1e-12") else (expm1(r) - r) / r**2


def _log_rest(z: mpf) -> mpf:
    s = sqrt(z)
    return mpf(2) / 3 + 2 * z / 5 if z < mpf("1e-14") else (log((1 + s) / (1 - s)) / s - 2) / z


def _upper_tail(t: mpf) -> mpf:
    return erfc(t / sqrt(mpf(2))) / 2


def _of_ndtr(t: mpf) -> mpf:
    return _upper_tail(t) / (1 - _upper_tail(t))


def _tanh_rest(z: mpf) -> mpf:
    x = sqrt(z)
    return 2 * z / 15 - mpf(1) / 3 if z < mpf("1e-14") else (tanh(x) / x - 1) / z


_HALF_LOG_2 = log(mpf(2)) / 2 * mpf("1.002")
_LARGEST_SQUARE = ((sqrt(mpf(2)) - 1) / (sqrt(mpf(2)) + 1)) ** 2 * mpf("1.01")
_TINY = mpf("1e-8")

FITS = {
    "EXP": Fit(_exp_rest, lambda r: r * r * exp(-r) + _TINY, -_HALF_LOG_2, _HALF_LOG_2, {"float32": 4, "float64": 9}),
    "LOG": Fit(_log_rest, lambda z: z + _TINY, mpf(0), _LARGEST_SQUARE, {"float32": 2, "float64": 6}),
    "TANH_SMALL": Fit(
        _tanh_rest, lambda z: z / (1 + z * _tanh_rest(z)) + _TINY, mpf(0), mpf(1), {"float32": 6, "float64": 14}
    ),
    "TANH_SMALLER": Fit(
        _tanh_rest,
        lambda z: z / (1 + z * _tanh_rest(z)) + _TINY,
        mpf(0),
        mpf("0.4225"),
        {"float32": 4, "float64": 11},
    ),
    "NDTR_FLOAT32": Fit(lambda t: log(_upper_tail(t)), _of_ndtr, mpf(0), mpf("5.6"), {"float32": 8}),
    "NDTR_FLOAT64": Fit(lambda t: log(_upper_tail(t)), _of_ndtr, mpf(0), mpf("8.5"), {"float64": 23}),
}


def fits(name: str) -> dict[str, tuple[list[float], float]]:
    """For each element type: the coefficients and the base-2 logarithm of the error."""
    fit = FITS[name]
    found = {}
    for dtype, degree in fit.degrees.items():
        coefficients, error = remez(fit.function, fit.weight, fit.low, fit.high, degree)
        found[dtype] = ([float(c) for c in coefficients], float(log(error, 2)))
    return found


if __name__ == "__main__":
    tables: dict[str, dict[str, tuple[list[float], float]]] = {}
    for name in FITS:
        tables.setdefault(name.rsplit("_FLOAT", 1)[0], {}).update(fits(name))
    for name, by_dtype in tables.items():
        print(f"{name} = {{")
        for dtype, (coefficients, error) in by_dtype.items():
            print(f"    types.{dtype}: (  # error 2**{error:.1f}")
            print(*(f"        {c!r}," for c in coefficients), sep="\n")
            print("    ),")
        print("}\n")

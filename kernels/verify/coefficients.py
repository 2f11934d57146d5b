"""Derives every constant of ``kernels/src/functions.hpp`` and prints it as a C++ literal.

Polynomials are minimax fits (Remez exchange in 300-bit arithmetic) to the function and interval
named beside each, rounded to binary64 coefficient by coefficient; the printed error is that of the
fit before the rounding. Nothing is taken from another library. Correctness does not rest on this
script: the sweep over all arguments (``verify-math``) decides.

Run it with ``python kernels/verify/coefficients.py`` (needs mpmath, takes seconds).
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb

from mpmath import (
    atanh,
    cos,
    erf,
    erfc,
    exp,
    floor,
    frexp,
    ldexp,
    log,
    lu_solve,
    matrix,
    mpf,
    nint,
    pi,
    sin,
    sqrt,
    workprec,
)

Function = Callable[[mpf], mpf]


def remez(
    function: Function,
    weight: Function,
    low: mpf,
    high: mpf,
    degree: int,
    center: mpf,
    rounds: int = 60,
    grid: int = 1500,
) -> tuple[list[mpf], mpf]:
    """Minimax fit of ``function`` on [low, high] in powers of ``v - center``.

    Args:
        function: What to fit.
        weight: The error measured is ``weight(v) * (function(v) - fit(v))``.
        low: Lower end of the interval.
        high: Upper end of the interval.
        degree: Degree of the polynomial.
        center: The polynomial is returned in powers of (v - center).
        rounds: At most so many exchanges.
        grid: Number of Chebyshev points on which the error is looked at.

    Returns:
        The coefficients, lowest power first, and the largest weighted error on the grid.
    """
    middle, half = (low + high) / 2, (high - low) / 2
    unknowns = degree + 2
    nodes = [middle - half * cos(pi * i / (degree + 1)) for i in range(unknowns)]
    points = [middle - half * cos(pi * (i + mpf(0.5)) / grid) for i in range(grid)]
    values = [(point, function(point), weight(point)) for point in points]
    scaled: list[mpf] = []
    worst = mpf(0)
    for _ in range(rounds):
        system, right = matrix(unknowns, unknowns), matrix(unknowns, 1)
        for i, node in enumerate(nodes):
            for j in range(degree + 1):
                system[i, j] = ((node - middle) / half) ** j
            system[i, degree + 1] = (-1) ** i / weight(node)
            right[i] = function(node)
        solution = lu_solve(system, right)
        scaled = [solution[j] for j in range(degree + 1)]
        errors = []
        for point, value, heaviness in values:
            t = (point - middle) / half
            fit = mpf(0)
            for coefficient in reversed(scaled):
                fit = fit * t + coefficient
            errors.append((value - fit) * heaviness)
        worst = max(map(abs, errors))
        extrema, current = [], 0
        for i, error in enumerate(errors):
            if error * errors[current] > 0:
                if abs(error) > abs(errors[current]):
                    current = i
            else:
                extrema.append(current)
                current = i
        extrema.append(current)
        if len(extrema) < unknowns or worst < abs(solution[degree + 1]) * mpf(1.02):
            break
        while len(extrema) > unknowns:
            extrema.pop(0 if abs(errors[extrema[0]]) < abs(errors[extrema[-1]]) else -1)
        nodes = [points[i] for i in extrema]
    powers = [mpf(0)] * (degree + 1)
    shift = middle - center  # t = ((v - center) - shift) / half
    for j, coefficient in enumerate(scaled):
        for i in range(j + 1):
            powers[i] += coefficient / half**j * comb(j, i) * (-shift) ** (j - i)
    return powers, worst


def rounded(value: mpf, bits: int = 53) -> mpf:
    """``value`` rounded to so many significant bits (nearest)."""
    if value == 0:
        return mpf(0)
    _, exponent = frexp(value)
    return ldexp(nint(ldexp(value, bits - exponent)), exponent - bits)


def literal(value: mpf) -> str:
    """``value`` rounded to binary64, as a hexadecimal floating literal of C++17."""
    return float(rounded(value)).hex()


def show(name: str, coefficients: list[mpf], error: mpf | None = None) -> None:
    """Prints a table of constants, lowest power first, with the fit's error."""
    note = "" if error is None else f"  // fit: 2^{float(log(error, 2)):.1f}"
    print(f"{name}:{note}")
    for coefficient in coefficients:
        print(f"    {literal(coefficient)},")


def elementary() -> None:
    """Constants of exp, log, tanh and erf."""
    ln2 = log(mpf(2))
    high = rounded(ln2, 40)
    show("1/ln2, ln2 in 40 bits, the rest of ln2", [1 / ln2, high, ln2 - high])
    tiny = mpf(2) ** -60
    edge = ln2 * mpf("0.5001")
    show(
        "(exp(r) - 1 - r) / r^2 on |r| <= ln2/2",
        *remez(
            lambda r: (exp(r) - 1 - r) / r**2 if abs(r) > tiny else mpf(0.5) + r / 6,
            lambda r: r * r + tiny,
            -edge,
            edge,
            9,
            mpf(0),
        ),
    )
    show(
        "(2 atanh(s) - 2s) / s^3 in powers of s^2, s = f / (2 + f), sqrt(1/2) <= 1 + f < sqrt(2)",
        *remez(
            lambda z: (2 * atanh(sqrt(z)) - 2 * sqrt(z)) / (z * sqrt(z)),
            lambda z: (z + mpf(2) ** -30) / 2,
            tiny,
            mpf("0.02945"),
            6,
            mpf(0),
        ),
    )
    split = mpf(1.25)
    slope = 2 / sqrt(pi)
    high = rounded(slope, 29)
    show("2/sqrt(pi) in 29 bits, the rest of it", [high, slope - high])
    show(
        "(erf(x)/x - 2/sqrt(pi)) / x^2 in powers of x^2, x <= 1.25",
        *remez(
            lambda u: (erf(sqrt(u)) / sqrt(u) - slope) / u,
            lambda u: u,
            tiny,
            split**2,
            12,
            mpf(0),
        ),
    )
    show(
        "log2(erfc(x)) in powers of x - 1.25, 1.25 <= x <= 3.9375",
        *remez(
            lambda v: log(erfc(v), 2),
            lambda v: erfc(v) * ln2,
            split,
            mpf(3.9375),
            15,
            split,
        ),
    )
    show("ln2", [ln2])


def circular() -> None:
    """Constants of the binary64 sine and cosine."""
    tiny = mpf(2) ** -60
    edge = (pi / 4 * mpf("1.0001")) ** 2
    show(
        "(sin(r) - r) / r^3 in powers of r^2, |r| <= pi/4",
        *remez(
            lambda z: (sin(sqrt(z)) - sqrt(z)) / (z * sqrt(z)), lambda z: z, tiny, edge, 6, mpf(0)
        ),
    )
    show(
        "(cos(r) - 1 + r^2/2) / r^4 in powers of r^2, |r| <= pi/4",
        *remez(lambda z: (cos(sqrt(z)) - 1 + z / 2) / z**2, lambda z: z**2, tiny, edge, 6, mpf(0)),
    )
    half = pi / 2
    show("pi/2 as a sum of two binary64", [half, half - rounded(half)])
    with workprec(1600):
        bits = int(floor(ldexp(2 / pi, 64 * 19)))
    print("2/pi, 1216 bits after a word of zeros:")
    words = [0] + [(bits >> (64 * (18 - i))) & (2**64 - 1) for i in range(19)]
    for word in words:
        print(f"    0x{word:016x}u,")


def main() -> None:
    """Prints all of them."""
    with workprec(300):
        elementary()
        circular()


if __name__ == "__main__":
    main()

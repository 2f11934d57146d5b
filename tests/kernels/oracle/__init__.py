"""The independent oracle of numerics version 1: `kernels/NUMERICS.md` in exact arithmetic.

Contract: everything is computed on bit patterns with Python integers (and mpmath at growing
precision for the functions that the standard does not round); no floating-point unit, no numpy
arithmetic and no line of the kernels takes part. `data` alone uses numpy, to draw inputs.

Modules: `ieee` (binary32 and binary64), `functions` (exp, log, tanh, erf, cos, sin), `reductions`
(the two orders of summation, and wrong variants of them), `operations`, `rope`, `attention`,
`decoder`, `sampling`, `data`.
"""

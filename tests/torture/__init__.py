"""Kill -9 at random moments, thousands of times: see `tests.torture.__main__`."""

"""How fast the program is, beside what else people use: `python -m benchmarks --reference PATH`."""

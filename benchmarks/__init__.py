"""How fast the program is, beside what people would use instead: `python -m benchmarks
--reference PATH`.
"""

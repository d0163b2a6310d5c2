"""Lessons and quiz: their files, and how far a learner has come.

The texts lie in `ko/` and `en/`.
"""

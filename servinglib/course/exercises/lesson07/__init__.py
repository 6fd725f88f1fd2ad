"""Lesson 07's exercises: two rules to write, then what they can promise."""

from servinglib.course.exercises.lesson07.ordering import AGED_ORDER, ALIGNED_BATCH
from servinglib.course.exercises.lesson07.promises import CHOOSE_BOUND, WRONG_PAIRS

__all__ = ["EXERCISES"]

EXERCISES = (AGED_ORDER, ALIGNED_BATCH, CHOOSE_BOUND, WRONG_PAIRS)

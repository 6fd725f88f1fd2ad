"""Lesson 10's exercises: guessing, keeping the answer exact, and numbers in eight bits."""

from servinglib.course.exercises.lesson10.eight_bits import QUANTIZE
from servinglib.course.exercises.lesson10.exactness import RULE, judge_rule
from servinglib.course.exercises.lesson10.guessing import BEST_DRAFT, LOOK_UP, judge_guess

__all__ = ["EXERCISES", "judge_guess", "judge_rule"]

EXERCISES = (BEST_DRAFT, RULE, LOOK_UP, QUANTIZE)

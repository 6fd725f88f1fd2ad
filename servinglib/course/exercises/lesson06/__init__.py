"""Lesson 06's exercises: filling a step, choosing who must go, empty seats, and the token budget."""

from servinglib.course.exercises.lesson06.budget import TOKEN_BUDGET, judge_budget
from servinglib.course.exercises.lesson06.eviction import ORDER, Mine, judge_order
from servinglib.course.exercises.lesson06.seats import FILL_STEP, IDLE_SHARE

__all__ = ["EXERCISES", "Mine", "judge_budget", "judge_order"]

EXERCISES = (FILL_STEP, ORDER, IDLE_SHARE, TOKEN_BUDGET)

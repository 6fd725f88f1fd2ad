"""Lesson 05's exercises: arithmetic of memory and of the roofline, and a pool of blocks."""

from servinglib.course.exercises.lesson05.arithmetic import COMPUTE_BOUND_FROM, KV_BYTES, STEP_TIME
from servinglib.course.exercises.lesson05.pages import PAGES, books, judge

__all__ = ["EXERCISES", "books", "judge"]

EXERCISES = (KV_BYTES, PAGES, STEP_TIME, COMPUTE_BOUND_FROM)

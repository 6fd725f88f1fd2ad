"""Lesson 08's exercises: first those on blocks, then those on the traffic that a cache sees."""

from servinglib.course.exercises.lesson08.blocks import BLOCK_KEYS, TOKENS_TO_COMPUTE
from servinglib.course.exercises.lesson08.template import PROMPT_ORDER, judge
from servinglib.course.exercises.lesson08.traffic import FATES, HIT_RATE

__all__ = ["EXERCISES", "judge"]

EXERCISES = (BLOCK_KEYS, TOKENS_TO_COMPUTE, FATES, HIT_RATE, PROMPT_ORDER)

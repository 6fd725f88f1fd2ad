"""Lesson 09's exercises: choosing an engine by configuration, and talking to one over the wire."""

from servinglib.course.exercises.lesson09.choosing import COACH_STEPS, EFFECTIVE
from servinglib.course.exercises.lesson09.wire import READ_EVENTS, RETRY_WAIT

EXERCISES = (EFFECTIVE, COACH_STEPS, READ_EVENTS, RETRY_WAIT)

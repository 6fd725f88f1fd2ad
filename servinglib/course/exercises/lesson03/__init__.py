"""Lesson 03's exercises: first those on one server, then those on many."""

from servinglib.course.exercises.lesson03.many_servers import ERLANG_C, SERVERS_NEEDED, judge
from servinglib.course.exercises.lesson03.one_server import CAPACITY, FIFO_WAITS, MEAN_WAIT

__all__ = ["EXERCISES", "judge"]

EXERCISES = (FIFO_WAITS, ERLANG_C, MEAN_WAIT, CAPACITY, SERVERS_NEEDED)

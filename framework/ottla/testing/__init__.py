"""Helpers for the tests of an application. The fixtures are in `ottla.testing.plugin`, which pytest finds by itself."""

from ottla.testing.waiting import wait_for

__all__ = ["wait_for"]

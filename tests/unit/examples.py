"""How many examples of a slow property the suite tries; `make fuzz` tries as many as of any other."""

from hypothesis import settings


def at_most(count: int) -> settings:
    """For a test whose examples take long each, and prove no more by being many."""
    return settings(max_examples=count) if settings.get_current_profile_name() == "tests" else settings()

"""The tests of properties: the same examples in every run of the suite, others in each run of `make fuzz`."""

from hypothesis import settings

from tests.conftest import REPOSITORY
from tests.unit.examples import at_most


def test_a_run_of_the_suite_owes_nothing_to_chance() -> None:
    assert settings.get_profile("tests").derandomize


def test_a_run_of_its_own_tries_fresh_examples_and_keeps_what_failed() -> None:
    fresh = settings.get_profile("fresh")
    assert not fresh.derandomize
    assert fresh.max_examples >= 1000
    assert fresh.database is not None
    assert fresh.print_blob


def test_no_test_keeps_to_the_same_examples_in_a_run_of_its_own() -> None:
    tests = REPOSITORY / "tests"
    own = {path.relative_to(tests).as_posix() for path in tests.rglob("*.py") if "derandomize" in path.read_text()}
    assert own == {"conftest.py", "unit/test_properties.py"}


def test_a_slow_property_has_fewer_examples_in_the_suite_alone() -> None:
    current = settings.get_current_profile_name()
    try:
        settings.load_profile("tests")
        assert at_most(7).max_examples == 7
        settings.load_profile("fresh")
        assert at_most(7).max_examples == settings.get_profile("fresh").max_examples
    finally:
        settings.load_profile(current)

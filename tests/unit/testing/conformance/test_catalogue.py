"""The list of specs: chosen by name and group, each with its purpose and its source."""

import pytest

from bridge.errors import InvalidRequest
from bridge.testing.conformance import catalogue


def names(**how: object) -> list[str]:
    return [each.name for each in catalogue.select(**how)]  # type: ignore[arg-type]


def test_every_spec_says_what_it_is_for_and_where_that_is_said() -> None:
    specs = catalogue.every()
    assert len(specs) > 60
    assert [each.name for each in specs if not each.purpose or "\n" in each.purpose or each.purpose.endswith(".") or not each.source] == []
    assert {each.group for each in specs} == set(catalogue.GROUPS)
    groups = [catalogue.GROUPS.index(each.group) for each in specs]
    assert groups == sorted(groups)


def test_the_short_run_kills_server_and_monitor_and_is_a_part() -> None:
    quick = catalogue.select(quick=True)
    assert 20 < len(quick) < len(catalogue.every()) * 0.6
    assert {"server-is-killed", "monitor-is-killed", "exit-codes", "exec-timeout", "oom-is-told"} <= {each.name for each in quick}


def test_specs_are_chosen_by_name_group_and_glob() -> None:
    assert names(only=["exit-codes"]) == ["exit-codes"]
    assert set(names(only=["signals"])) == {each.name for each in catalogue.every() if each.group == "signals"}
    assert set(names(only=["exec-t*", "costs"])) == {"exec-timeout", "exec-terminal", "start-time", "overhead"}
    assert "exit-codes" not in names(skip=["exit-*"])
    assert names(only=["containers"], skip=["containers"]) == []


@pytest.mark.parametrize("where", ["only", "skip"])
def test_an_unknown_one_is_refused_with_the_nearest(where: str) -> None:
    with pytest.raises(InvalidRequest, match="no spec 'exit-code'; did you mean 'exit-codes'"):
        catalogue.select(**{where: ["exit-code"]})  # type: ignore[arg-type]

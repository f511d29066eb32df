# Running one suite of tests; scripts/test reads this file with "." after setup.sh.
#
#   run_suite SUITE WHERE [PYTEST ARGUMENTS]   its exit code is pytest's                 -> $AGAIN
#
# The live suites run for minutes on a machine that others may load. When at most three of their tests failed, exactly those
# are run once more, alone, and what then passed is said loudly and kept in $AGAIN: it is a race or a loaded machine, to be looked
# into. More of them, or one that fails again, is a failure; so is any failure of a run with arguments of its own.

AGAIN=""
MOST_AGAIN=3

run_suite() {
    suite=$1 where=$2
    shift 2
    say "$suite: pytest $where $*"
    case $suite:$# in
    integration:0 | conformance:0) live_suite ;;
    *) "$VENV/bin/python" -m pytest -q -rs "$where" "$@" ;;
    esac
}

live_suite() {
    cache=.pytest_cache/$suite
    rm -rf "$cache" # or a test that failed in an earlier run would be among those of this one
    ended=0
    "$VENV/bin/python" -m pytest -q -rs -o cache_dir="$cache" "$where" || ended=$?
    [ "$ended" -eq 1 ] || return "$ended" # 1: tests failed; anything else is no matter of single tests
    names=$(failed_tests "$cache") || return 1
    count=$(printf '%s\n' "$names" | wc -l)
    [ "$count" -le "$MOST_AGAIN" ] || return 1
    say "$suite: $count failed, tried once more, alone"
    "$VENV/bin/python" -m pytest -q -rs -o cache_dir="$cache" --last-failed --last-failed-no-failures=none "$where" || return 1
    said="tried again: $count failed, then passed: $(printf '%s' "$names" | tr '\n' ' ')"
    AGAIN="$AGAIN$said
"
    say "$said"
}

failed_tests() { # the names that pytest has kept in the cache directory $1, a line each; none is a failure
    "$VENV/bin/python" - "$1/v/cache/lastfailed" <<'PYTHON'
import json, sys

try:
    with open(sys.argv[1]) as file:
        names = sorted(json.load(file))
except (OSError, ValueError):
    names = []
print("\n".join(names))
sys.exit(not names)
PYTHON
}

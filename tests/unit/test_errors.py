"""Messages of the taxonomy, and that abstract classes stay abstract."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from bridge import errors


def test_the_roots_are_never_raised_themselves() -> None:
    with pytest.raises(TypeError, match="abstract"):
        errors.BridgeError("x")
    with pytest.raises(TypeError, match="abstract"):
        errors.KubeletVisible("x")


def test_every_class_belongs_to_the_taxonomy_and_says_what_it_means() -> None:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    assert len(classes) > 15
    assert [one for one in classes if not issubclass(one, errors.BridgeError) or not one.__doc__] == []


def test_invalid_request_names_its_field() -> None:
    error = errors.InvalidRequest("must not be empty", field="config.metadata.name")
    assert str(error) == "config.metadata.name: must not be empty"
    assert error.field == "config.metadata.name"
    assert str(errors.InvalidRequest("bad")) == "bad"


def test_what_the_runtime_said_is_in_the_error() -> None:
    error = errors.RuntimeFailed(handler="runc", verb="run", exit_code=1, log_tail=["", " exec: no such file \n", "bye"], hint="install it")
    assert str(error) == "handler 'runc': run failed (exit code 1): exec: no such file; bye [install it]"


def test_a_silent_runtime_and_a_timeout() -> None:
    assert (
        str(errors.RuntimeFailed(handler="crun", verb="kill", exit_code=None)) == "handler 'crun': kill failed (timed out): it said nothing"
    )


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (errors.RegistryUnavailable, "RegistryUnavailable"),
        (errors.SignatureValidationFailed, "SignatureValidationFailed"),
        (errors.RROUnsupported, "RROUnsupported"),
        (errors.ImageVolumeMountFailed, "ImageVolumeMountFailed"),
    ],
)
def test_what_the_kubelet_compares_comes_first(kind: type[errors.KubeletVisible], prefix: str) -> None:
    assert str(kind("the words")) == f"{prefix}: the words"


def test_retryable_is_told_by_the_class() -> None:
    assert issubclass(errors.MonitorGone, errors.Unavailable)
    assert errors.HostError("x", errno=5).errno == 5


@pytest.mark.parametrize("error", [errors.NotFound("gone"), errors.HostError("x", errno=2)])
def test_errors_survive_copies(error: errors.BridgeError) -> None:
    assert str(copy.copy(error)) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

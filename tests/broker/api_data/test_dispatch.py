"""The API table, ApiVersions, and how an exception becomes an answer."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from ottla_broker import api as api_table
from ottla_broker.api import APIS, UnanswerableError, error_code_of
from ottla_broker.pending import Pending
from ottla_wire import errors
from ottla_wire.messages import request_class
from ottla_wire.messages.api_versions import ApiVersionsRequest
from ottla_wire.messages.fetch import FetchRequest
from ottla_wire.messages.metadata import MetadataRequest


class TestTable:
    def test_every_advertised_api_has_a_module_and_a_message(self) -> None:
        for served in APIS.values():
            assert find_spec(f"ottla_broker.api.{served.name}") is not None, served.name
            versions = request_class(served.key).versions
            assert versions.min <= served.min_version <= served.max_version <= versions.max, served.name
            assert callable(api_table.handler_module(served.key).handle)

    def test_every_module_is_advertised(self) -> None:
        from pathlib import Path

        import ottla_broker.api

        names = {path.stem for path in Path(ottla_broker.api.__file__).parent.glob("*.py")}
        assert names - {"__init__", "current_leader", "transaction_errors"} == {served.name for served in APIS.values()}


class TestApiVersions:
    def ask(self, bench: Any, version: int, name: str = "ottla-test", software_version: str = "1.0") -> Any:
        request = (
            ApiVersionsRequest(client_software_name=name, client_software_version=software_version)
            if version >= 3
            else ApiVersionsRequest()
        )
        return bench.ask(request, version)

    @pytest.mark.parametrize("version", range(5))
    def test_every_version_lists_what_is_served(self, bench: Any, version: int) -> None:
        response = self.ask(bench, version)
        assert response.error_code == 0
        ranges = {k.api_key: (k.min_version, k.max_version) for k in response.api_keys}
        assert set(ranges) == set(APIS)
        assert ranges[1] == (4, 18)
        # librdkafka compresses only if Produce 0-2 seems to be there (KAFKA-18659)
        assert ranges[0] == (0, 13)

    def test_features_are_told_if_their_api_is_served(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def told() -> dict[str, int]:
            response = self.ask(bench, 4)
            assert response.finalized_features_epoch >= 0
            return {f.name: f.max_version_level for f in response.finalized_features}

        served = {key: APIS[key] for key in APIS if key not in (26, 68)}
        monkeypatch.setattr("ottla_broker.api.api_versions.APIS", served)
        assert told() == {"metadata.version": 30}
        monkeypatch.setattr("ottla_broker.api.api_versions.APIS", served | {26: APIS[0]})
        assert told() == {"metadata.version": 30, "transaction.version": 2}
        monkeypatch.setattr("ottla_broker.api.api_versions.APIS", served | {68: APIS[0]})
        assert told() == {"metadata.version": 30, "group.version": 1}

    def test_supported_features_from_zero_are_for_version_4(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ottla_broker.api.api_versions.APIS", APIS | {26: APIS[0], 68: APIS[0]})
        assert {f.name for f in self.ask(bench, 3).supported_features} == {"metadata.version"}
        assert {f.name for f in self.ask(bench, 4).supported_features} == {
            "metadata.version",
            "group.version",
            "transaction.version",
        }

    @pytest.mark.parametrize("name", ["", "-a", "a-", "a b", "ä", "a\n"])
    def test_software_names_are_checked(self, bench: Any, name: str) -> None:
        assert self.ask(bench, 3, name=name).error_code == errors.InvalidRequest.code
        assert self.ask(bench, 3, software_version=name).error_code == errors.InvalidRequest.code

    @pytest.mark.parametrize("name", ["a", "apache-kafka-java", "1.2.3"])
    def test_usual_software_names_pass(self, bench: Any, name: str) -> None:
        assert self.ask(bench, 3, name=name).error_code == 0


class Refusing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def authorize(self, context: Any, request: Any) -> None:
        raise self.error


class TestErrors:
    def test_every_request_passes_the_authorizer(self, bench: Any) -> None:
        bench.broker.authorizer = Refusing(errors.ClusterAuthorizationFailed("not you"))
        assert bench.ask(FetchRequest(), 12).error_code == errors.ClusterAuthorizationFailed.code

    def test_an_error_without_a_place_in_the_answer_is_unanswerable(self, bench: Any) -> None:
        from ottla_wire.messages.list_offsets import ListOffsetsRequest

        bench.broker.authorizer = Refusing(errors.ClusterAuthorizationFailed("not you"))
        with pytest.raises(UnanswerableError, match="not you"):
            bench.ask(ListOffsetsRequest(replica_id=-1), 6)

    def test_a_pending_that_fails_is_answered_too(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        parked: Pending[Any] = Pending()
        module = api_table.handler_module(1)
        monkeypatch.setattr(module, "handle", lambda *_: parked)
        pending = bench.ask(FetchRequest(), 12)
        parked.fail(errors.KafkaStorageError("gone"))
        assert pending.result().error_code == errors.KafkaStorageError.code

    def test_what_is_no_kafka_error_is_an_unknown_server_error_and_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert error_code_of(ZeroDivisionError()) == -1
        assert "ZeroDivisionError" in caplog.text

    def test_a_module_may_answer_errors_itself(self, bench: Any) -> None:
        bench.broker.authorizer = Refusing(errors.ClusterAuthorizationFailed("not you"))
        response = bench.ask(MetadataRequest(topics=None), 13)
        assert response.error_code == errors.ClusterAuthorizationFailed.code

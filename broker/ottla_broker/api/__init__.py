"""One module per API key, and the table that finds it.

A module `api/<name>.py` has one function::

    def handle(broker: Broker, context: RequestContext, request: XxxRequest) -> XxxResponse | Pending[XxxResponse] |
    None

It is called in the connection's data callback, in the order of the requests; it never waits. What is not known yet
is returned as a `Pending`; None means "no answer, ever" (Produce with acks=0). The modules are imported at first
use.

Errors: logic raises `KafkaError`s; a handler turns those of one partition (or topic, or group) into the error code
of that entry with `error_code_of`. What escapes a handler is answered by `dispatch` in the response's top-level
`error_code`, where the response has one; the module may define `error_response(request, code, message) -> response`
where it has not. Without either the connection is closed, as Kafka does when no error frame is possible.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from ottla_broker.pending import Pending

if TYPE_CHECKING:
    from types import ModuleType

    from ottla_broker.broker import Broker
    from ottla_broker.context import RequestContext

logger = logging.getLogger(__name__)


class Api(NamedTuple):
    """One row: where an API lives, and the versions served (Apache Kafka 4.3's, exactly)."""

    key: int
    name: str
    min_version: int
    max_version: int


# Rows without a module are not advertised: a client switches features on the presence of a key.
APIS: dict[int, Api] = {
    api.key: api
    for api in (
        Api(0, "produce", 3, 13),
        Api(1, "fetch", 4, 18),
        Api(2, "list_offsets", 1, 11),
        Api(3, "metadata", 0, 13),
        Api(8, "offset_commit", 2, 10),
        Api(9, "offset_fetch", 1, 10),
        Api(10, "find_coordinator", 0, 6),
        Api(11, "join_group", 0, 9),
        Api(12, "heartbeat", 0, 4),
        Api(13, "leave_group", 0, 5),
        Api(14, "sync_group", 0, 5),
        Api(15, "describe_groups", 0, 6),
        Api(16, "list_groups", 0, 5),
        Api(18, "api_versions", 0, 4),
        Api(19, "create_topics", 2, 7),
        Api(20, "delete_topics", 1, 6),
        Api(21, "delete_records", 0, 2),
        Api(22, "init_producer_id", 0, 5),
        Api(23, "offset_for_leader_epoch", 2, 4),
        Api(24, "add_partitions_to_txn", 0, 5),
        Api(25, "add_offsets_to_txn", 0, 4),
        Api(26, "end_txn", 0, 5),
        Api(27, "write_txn_markers", 1, 2),
        Api(28, "txn_offset_commit", 0, 5),
        Api(32, "describe_configs", 1, 4),
        Api(33, "alter_configs", 0, 2),
        Api(35, "describe_log_dirs", 1, 5),
        Api(37, "create_partitions", 0, 3),
        Api(42, "delete_groups", 0, 2),
        Api(44, "incremental_alter_configs", 0, 1),
        Api(47, "offset_delete", 0, 0),
        Api(60, "describe_cluster", 0, 2),
        Api(61, "describe_producers", 0, 0),
        Api(65, "describe_transactions", 0, 0),
        Api(66, "list_transactions", 0, 2),
    )
}

# Kafka advertises Produce from 0 (old librdkafka looks for an overlap with 0-2 before it compresses; KAFKA-18659)
# and refuses 0-2 all the same.
PRODUCE_ADVERTISED_MIN_VERSION = 0


class UnanswerableError(Exception):
    """A request failed and its response has no place for the error: the connection is closed."""


def dispatch(broker: Broker, context: RequestContext, request: Any) -> Any:
    """Authorize and handle one request.

    Returns the response, a `Pending` of it, or None where the request wants no answer.

    Raises:
        UnanswerableError: the failure has no place in the response.
    """
    module = handler_module(context.api_key)
    try:
        broker.authorizer.authorize(context, request)
        answer = module.handle(broker, context, request)
    except UnanswerableError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where an exception becomes an error code
        return _error_answer(module, request, context, error)
    if isinstance(answer, Pending):
        return _guarded(answer, module, request, context)
    return answer


def handler_module(api_key: int) -> ModuleType:
    """The module of an API key, imported at first use."""
    module = _modules.get(api_key)
    if module is None:
        module = _modules[api_key] = import_module(f"ottla_broker.api.{APIS[api_key].name}")
    return module


_modules: dict[int, ModuleType] = {}


def error_code_of(error: Exception) -> int:
    """The wire code of an exception; what is not a `KafkaError` is logged and becomes UNKNOWN_SERVER_ERROR."""
    from ottla_wire.errors import KafkaError, UnknownServerError

    if isinstance(error, KafkaError):
        return int(error.code)
    logger.error("unexpected error in a request handler", exc_info=error)
    return int(UnknownServerError.code)


def _guarded(answer: Pending[Any], module: ModuleType, request: Any, context: RequestContext) -> Pending[Any]:
    if answer.done() and answer.error() is None:
        return answer
    guarded: Pending[Any] = type(answer)()  # it may be Unapplied

    def settle(finished: Pending[Any]) -> None:
        error = finished.error()
        if error is None:
            guarded.complete(finished.result())
            return
        try:
            guarded.complete(_error_answer(module, request, context, error))
        except UnanswerableError as unanswerable:
            guarded.fail(unanswerable)

    answer.on_done(settle)
    return guarded


def _error_answer(module: ModuleType, request: Any, context: RequestContext, error: Exception) -> Any:
    code = error_code_of(error)
    make = getattr(module, "error_response", None)
    if make is not None:
        return make(request, code, str(error) or None)
    from ottla_wire.messages import response_class

    response = response_class(context.api_key)()
    if not hasattr(response, "error_code"):
        raise UnanswerableError(f"{APIS[context.api_key].name} failed: {error!r}") from error
    response.error_code = code
    if hasattr(response, "error_message"):
        response.error_message = str(error) or None
    return response

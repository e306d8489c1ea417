"""What a container does with a record that its listener failed on: back-off, redelivery, recovery."""

from ottla.error_handling.error_handler import (
    BatchListenerFailed,
    ErrorHandler,
    Recoverer,
    log_and_skip,
    stop_container,
)
from ottla.error_handling.retry import Retry

__all__ = ["BatchListenerFailed", "ErrorHandler", "Recoverer", "Retry", "log_and_skip", "stop_container"]

"""`ottla run module:app`."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from ottla.app import Ottla
from ottla.errors import ConfigError

STOP_TIMEOUT_SECONDS = 40


def run_target(target: str, *, workers: int, env_file: Path | None, reload: bool = False) -> None:
    """Run the application, in this process or in `workers` of them, or in one that is replaced when files change.

    Raises:
        ConfigError: the target names no application.
    """
    if reload:
        from ottla.cli.reload import run_reloading

        run_reloading(target, workers=workers, env_file=env_file)
        return
    load_environment(env_file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    application = load(target)
    if workers == 1:
        application.run()
    else:
        _run_workers(target, application, workers)


def load_environment(env_file: Path | None) -> None:
    """Take from the file what the environment does not have."""
    if env_file is not None:
        from dotenv import load_dotenv

        load_dotenv(env_file)


def load(target: str) -> Ottla:
    """The application that `module:attribute` names; the current folder is searched first, as with `python -m`."""
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise ConfigError(f"{target!r} names no application: write MODULE:APP, such as shop:app")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise
        raise ConfigError(f"there is no module {module_name!r} in {os.getcwd()} or on the import path") from None
    if not hasattr(module, attribute):
        raise ConfigError(f"there is no {attribute!r} in the module {module_name!r}")
    application = getattr(module, attribute)
    if not isinstance(application, Ottla):
        raise ConfigError(f"{module_name}.{attribute} is not an Ottla application but {type(application).__name__}")
    return application


def _run_workers(target: str, application: Ottla, workers: int) -> None:
    """Start the embedded broker here, if there is to be one, and the workers beside it."""
    application.use_broker_process()
    environment = {**os.environ, "OTTLA_BOOTSTRAP_SERVERS": application.bootstrap_servers}
    command = [sys.executable, "-m", "ottla", "run", target]
    children = [subprocess.Popen(command, env=environment) for _ in range(workers)]

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    codes = [child.wait() for child in children]
    application.stop()
    failed = [code for code in codes if code not in (0, -signal.SIGINT, -signal.SIGTERM)]
    if failed:
        raise ConfigError(f"{len(failed)} of {workers} workers ended with an error (exit code {failed[0]})")

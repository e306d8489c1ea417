"""Settings of an application: arguments, then environment variables, then a file. Read only when an application starts.

`OTTLA_BOOTSTRAP_SERVERS`, `OTTLA_DATA`, `OTTLA_GROUP`, `OTTLA_INSTANCE`, `OTTLA_NAME`; client settings as
`OTTLA_PRODUCER__LINGER_MS=20` or `OTTLA_CONSUMER__MAX_POLL_RECORDS=100`. The file is `ottla.toml`, or what
`OTTLA_SETTINGS` names, with the same names: `bootstrap_servers = "..."`, `[producer]`, `[consumer]`.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ottla.errors import ConfigError

_PREFIX = "OTTLA_"
# Not fields of the settings: what other parts of the package read,
_OF_THE_PACKAGE = {"OTTLA_SETTINGS", "OTTLA_STATE_DIR", "OTTLA_PURE"}
# and what a checkout's own tests read. They may be set in a shell that starts an application as well.
_OF_THE_TESTS = {
    "OTTLA_APACHE_IMAGE",
    "OTTLA_APACHE_KAFKA",
    "OTTLA_CRASH_ROUNDS",
    "OTTLA_CRASH_SEED",
    "OTTLA_KAFKA_CACHE",
    "OTTLA_KAFKA_JARS",
    "OTTLA_POSTGRES",
    "OTTLA_RECORD",
    "OTTLA_REQUIRE",
    "OTTLA_SIMULATION_SEEDS",
}


class OttlaSettings(BaseSettings):
    """What an application can be told from outside its code."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter="__", extra="forbid")

    bootstrap_servers: str | None = None
    name: str | None = None
    data: Path | None = None
    group: str | None = None
    instance: str | None = None
    producer: dict[str, Any] = Field(default_factory=dict)
    consumer: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, and that over the file."""
        file = os.environ.get("OTTLA_SETTINGS", "ottla.toml")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)


def load(**arguments: Any) -> OttlaSettings:
    """The settings in force; arguments that are None count as not given.

    Raises:
        ConfigError: a name is unknown (with the nearest one that exists) or a value does not fit.
    """
    named = os.environ.get("OTTLA_SETTINGS")
    if named and not Path(named).is_file():
        raise ConfigError(f"OTTLA_SETTINGS names {named}, and there is no such file")
    _refuse_unknown_variables()
    try:
        return OttlaSettings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(fault) for fault in error.errors(include_url=False))) from None


def _refuse_unknown_variables() -> None:
    fields = list(OttlaSettings.model_fields)
    known = fields + sorted(variable.removeprefix(_PREFIX).lower() for variable in _OF_THE_PACKAGE)
    for variable in os.environ:
        if not variable.startswith(_PREFIX) or variable in _OF_THE_PACKAGE | _OF_THE_TESTS:
            continue
        field = variable.removeprefix(_PREFIX).lower().partition("__")[0]
        if field not in fields:
            raise ConfigError(f"the environment variable {variable} is not known{_nearest(field, known, upper=True)}")


def _explain(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"the setting {name!r} is not known{_nearest(name, list(OttlaSettings.model_fields))}"
    return f"the setting {name!r}: {fault['msg']}"


def _nearest(name: str, known: list[str], *, upper: bool = False) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    names = [_PREFIX + name.upper() if upper else name for name in close or known]
    return f"; did you mean {names[0]}?" if close else f"; there are: {', '.join(names)}"

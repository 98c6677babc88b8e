"""Credentials of a remote belong in `.dvc/config.local` or the environment, never in git."""

import configparser
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from smt.errors import UserError

SECRET_OPTIONS = (
    "access_key_id", "secret_access_key", "session_token", "sse_customer_key", "password",
    "connection_string", "account_key", "sas_token", "client_secret", "gdrive_client_secret",
    "oss_key_id", "oss_key_secret", "token",
)  # fmt: skip
"""Options of DVC's remotes that hold a secret."""


def require_no_credentials(config: Path) -> None:
    """Check that a DVC configuration, which git tracks, holds no credentials.

    Raises:
        UserError: naming file, remote and option, and how to move it, without the value.
    """
    for section, option in _secret_options(config):
        remote = section.strip("'").removeprefix("remote ").strip('"')
        raise UserError(
            f"{config}: remote {remote}: {option} holds credentials, and git tracks this file; "
            f"run: dvc remote modify --unset {remote} {option}, then put it into the environment "
            f"(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or add --local"
        )


def _secret_options(config: Path) -> Iterator[tuple[str, str]]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(config, encoding="utf-8")
    for section in parser.sections():
        for option, value in parser[section].items():
            is_password = option == "url" and urlsplit(value.strip("'\"")).password is not None
            if option in SECRET_OPTIONS or is_password:
                yield section, option

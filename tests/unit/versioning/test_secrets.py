"""Credentials of a remote are found in the file that git keeps, before they are pushed with it."""

import pytest

from smt.errors import UserError
from smt.versioning import secrets

HEADING = "[core]\n    analytics = false\n['remote \"lab\"']\n    url = s3://bucket/smt\n"


@pytest.mark.parametrize("option", ["access_key_id", "secret_access_key", "password"])
def test_an_option_that_holds_a_secret_is_named_and_its_value_is_not(tmp_path, option):
    config = tmp_path / "config"
    config.write_text(f"{HEADING}    {option} = hunter2\n")
    with pytest.raises(UserError, match=f"config: remote lab: {option} holds credentials") as told:
        secrets.require_none(config)
    assert "hunter2" not in str(told.value) and "\n" not in str(told.value)


def test_a_password_within_a_url_is_one(tmp_path):
    config = tmp_path / "config"
    config.write_text("['remote \"lab\"']\n    url = https://me:hunter2@host/smt\n")
    with pytest.raises(UserError, match="remote lab: url holds credentials") as told:
        secrets.require_none(config)
    assert "hunter2" not in str(told.value)


def test_places_profiles_and_endpoints_are_no_secrets(tmp_path):
    config = tmp_path / "config"
    config.write_text(f"{HEADING}    endpointurl = http://127.0.0.1:9000\n    profile = lab%20\n")
    secrets.require_none(config)
    secrets.require_none(tmp_path / "missing")

"""Credentials of a remote are found in the configuration that git tracks."""

import pytest

from smt.errors import UserError
from smt.versioning.credentials import require_no_credentials

HEADING = "[core]\n    analytics = false\n['remote \"lab\"']\n    url = s3://bucket/smt\n"


@pytest.mark.parametrize("option", ["access_key_id", "secret_access_key", "password"])
def test_an_option_that_holds_a_secret_is_named_and_its_value_is_not(tmp_path, option):
    config = tmp_path / "config"
    config.write_text(f"{HEADING}    {option} = hunter2\n")
    with pytest.raises(
        UserError, match=f"config: remote lab: {option} holds credentials"
    ) as caught:
        require_no_credentials(config)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_password_in_a_url_is_named_and_its_value_is_not(tmp_path):
    config = tmp_path / "config"
    config.write_text("['remote \"lab\"']\n    url = https://me:hunter2@host/smt\n")
    with pytest.raises(UserError, match="remote lab: url holds credentials") as caught:
        require_no_credentials(config)
    assert "hunter2" not in str(caught.value)


def test_urls_profiles_and_endpoints_are_not_secrets(tmp_path):
    config = tmp_path / "config"
    config.write_text(f"{HEADING}    endpointurl = http://127.0.0.1:9000\n    profile = lab%20\n")
    require_no_credentials(config)
    require_no_credentials(tmp_path / "missing")

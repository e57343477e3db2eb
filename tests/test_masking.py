"""What people see of a URL: enough to know the place, never what would let them in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellcache.masking import mask_text, mask_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mysql+pymysql://nova:s3cret@db/nova", "mysql+pymysql://nova:***@db/nova"),
        ("postgresql+psycopg://nova@db/nova", "postgresql+psycopg://nova@db/nova"),
        ("redis://:s3cret@[::1]:6379/0", "redis://:***@[::1]:6379/0"),
        ("sqlite:////var/lib/cell.db", "sqlite:////var/lib/cell.db"),
        ("none:///", "none:///"),
        ("mysql://nova:s3@c/r:e,t@db/nova", "mysql://nova:***@db/nova"),
        ("rabbit://a:s3cret@mq1:5672,a:s3cret@mq2:5672/cell", "rabbit://a:***@mq2:5672/cell"),
        ("mysql://db/nova?user=a&password=s3cret&x=1", "mysql://db/nova?user=a&password=***&x=1"),
        ("redis://h/0?ssl_ca_certs=/ca&Password=s3cret", "redis://h/0?ssl_ca_certs=/ca&Password=***"),
        ("just text", "just text"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert mask_url(url) == shown
    assert mask_text(f"cannot reach {url} now") == f"cannot reach {shown} now"


@given(st.text(st.characters(exclude_characters=":@/?#&;= ", min_codepoint=33), min_size=8))
def test_no_password_survives(password: str) -> None:
    marked = f"Zq{password}qZ"
    assert marked not in mask_url(f"mysql://nova:{marked}@db/nova")
    assert marked not in mask_url(f"mysql://nova:a@{marked}@db/nova?token={marked}&pwd={marked}")

"""What people see of a URL: enough to know the place, never what would let them in."""

from __future__ import annotations

import time
import timeit

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
        ("postgresql://a:5432,b:5433/nova?options=-csearch_path%3Dcells", None),
        ("unix:///run/redis.sock", None),
        ("mysql://db/nova?password=first;second", "mysql://db/nova?password=***"),
        ("mysql://db/nova?x=1;password=s3cret", "mysql://db/nova?x=***"),
        ("mysql://db/nova?%70assword=s3cret&x=1", "mysql://db/nova?%70assword=***&x=1"),
        ("mysql://nova:s3?cret@db/nova", "mysql://***"),
        ("redis://:s3cret", "redis://***"),
        ("mysql://nova:s3cret/nova", "mysql://***"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str | None) -> None:
    assert mask_url(url) == (shown or url)
    assert mask_text(f"cannot reach {url} now") == f"cannot reach {shown or url} now"


@pytest.mark.parametrize("end", [": refused", ", or", ".", "; see", ")"])
def test_what_follows_a_url_in_a_text_is_not_taken_for_its_port(end: str) -> None:
    assert mask_text(f"redis://db:6379{end}") == f"redis://db:6379{end}"


def test_password_with_a_blank_is_masked_whole() -> None:
    assert mask_url("mysql://db/nova?password=first second&x=1") == "mysql://db/nova?password=***&x=1"


@pytest.mark.parametrize("text", ["openstack:s3cret@mq", "s3cret", ""])
def test_what_is_no_url_is_not_shown(text: str) -> None:
    assert mask_url(text) == "***"


@pytest.mark.parametrize(
    "piece", ["?pass", "a.", "://", "[::", ":1", ":1,", "&pass=", "x://u:p@h/", "@", "%70", ";password=", "a://b "]
)
@pytest.mark.parametrize("start", ["", "x://", "x://h?"])
def test_four_times_the_text_takes_less_than_six_times_as_long(start: str, piece: str) -> None:
    def least_s(repeats: int) -> float:
        text = start + piece * repeats
        return min(timeit.repeat(lambda: mask_text(text), number=1, repeat=5, timer=time.process_time))

    # What takes less than the clock can tell is not compared: a text that took long once takes far more four times.
    assert least_s(16_000) < 6 * max(least_s(4_000), 0.002)


@given(st.text(st.characters(exclude_characters=":@/?#&;= ", min_codepoint=33), min_size=8))
def test_no_password_survives(password: str) -> None:
    marked = f"Zq{password}qZ"
    assert marked not in mask_url(f"mysql://nova:{marked}@db/nova")
    assert marked not in mask_url(f"mysql://nova:a@{marked}@db/nova?token={marked}&pwd={marked}")

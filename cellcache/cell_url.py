"""Which options a cell's database URL may have: those that choose the server, how to speak to it and how to trust it.

Whoever writes to `cell_mapping` chooses the server as well, and what our process is that connects to it. So no option
has it send or read files of this host, take passwords, tickets or accounts from them, run statements or load code. What
a later release of a driver brings is refused until it stands here.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import URL

from cellcache.database_url import parsed_database_url


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ACCEPTED: Mapping[str, frozenset[str]] = {
    "mysql": _names("""
        user password passwd unix_socket bind_address connect_timeout read_timeout write_timeout max_allowed_packet
        charset collation use_unicode sql_mode program_name
        ssl_ca ssl_capath ssl_cert ssl_key ssl_key_password ssl_cipher ssl_disabled
        ssl_verify_cert ssl_verify_identity ssl_check_hostname server_public_key
    """),
    "postgresql": _names("""
        user password host hostaddr port target_session_attrs load_balance_hosts
        connect_timeout tcp_user_timeout keepalives keepalives_idle keepalives_interval keepalives_count
        options client_encoding application_name fallback_application_name prepare_threshold
        min_protocol_version max_protocol_version
        sslmode sslnegotiation sslcompression sslcert sslkey sslpassword sslcertmode sslrootcert sslcrl sslcrldir sslsni
        ssl_min_protocol_version ssl_max_protocol_version channel_binding require_auth requirepeer gssencmode
    """),
    "sqlite": _names("uri mode cache immutable nolock psow timeout"),
}
REFUSED: Mapping[str, frozenset[str]] = {
    "mysql": _names("""
        local_infile read_default_file read_default_group init_command client_flag plugin plugins
        host port database db autocommit auth_plugin_map binary_prefix compress conv cursorclass defer_connect
        named_pipe ssl
    """),
    "postgresql": _names("""
        service servicefile passfile sslkeylogfile gsslib gssdelegation krbsrvname replication plugin plugins
        oauth_issuer oauth_client_id oauth_client_secret oauth_scope scram_client_key scram_server_key
        dbname conninfo autocommit context row_factory cursor_factory
    """),
    "sqlite": _names("vfs modeof detect_types isolation_level check_same_thread cached_statements plugin plugins"),
}
"""Those that an error names. What it does not know is not shown: it could be a part of a password that holds a `?`."""


def parsed_cell_url(text: str) -> URL:
    """Take it apart as `parsed_database_url` does; raise ValueError, too, for an option that a cell's may not have."""
    url = parsed_database_url(text)
    kind = url.get_backend_name().replace("mariadb", "mysql")
    names = url.query.keys() - ACCEPTED[kind]
    if names:
        known = sorted(names & REFUSED[kind])
        named = (
            ", ".join(known) if len(known) == len(names) else ", ".join([*known, "one that cellcache does not know"])
        )
        raise ValueError(f"has options that a cell's database URL may not have ({named}): leave them out")
    return url

"""Says who may ask the server what.

A server on a machine of one's own can be reached by every page that its browser shows:

- a page of elsewhere can have a name that leads to this machine (DNS rebinding), and
  would then read the answers; so the `Host` that was asked for has to be this machine's
  own name or an address in numbers;
- a page can send forms to other servers (CSRF); so an `Origin`, which browsers add, has
  to be this server itself.

Where others reach the machine, a token has to come with each request.
"""

import hashlib
import hmac
import ipaddress
import socket
import urllib.parse
from collections.abc import Mapping

from fdftnet_jax.errors import UserError

COOKIE = "fdftnet"
SHORTEST_TOKEN = 16
# Of every answer. All that the page shows comes from this server, or is a picture that
# the browser has itself.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    "style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Checks who asks; see the module."""

    def __init__(self, host: str, token: str | None = None):
        """Takes the options of the command.

        Args:
          host: the address or name that the server listens on.
          token: that each request has to bring; None for none.

        Raises:
          UserError: the token is missing where others reach the server, or too short.
        """
        if token is None and not is_loopback(host):
            raise UserError(
                f"expected --token with --host {host}, since other machines can reach "
                "it, found none; give one that nobody guesses, or leave out --host"
            )
        if token is not None and not (
            len(token) >= SHORTEST_TOKEN and token.isascii() and token.isprintable()
        ):
            raise UserError(
                f"expected a token of {SHORTEST_TOKEN} characters or more, in ASCII, "
                f"found {len(token)}; make one with `openssl rand -hex 16`"
            )
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        self._token = token

    @property
    def has_token(self) -> bool:
        """Whether a request has to bring a token."""
        return self._token is not None

    @property
    def cookie(self) -> str:
        """What the page's cookie holds: proof of the token, not the token itself."""
        return hmac.new((self._token or "").encode(), b"page", "sha256").hexdigest()

    def right_host(self, host: str) -> bool:
        """Whether the `Host` of a request is a name of this machine."""
        try:
            address = urllib.parse.urlsplit(f"//{host}")
            name = address.hostname or ""
        except ValueError:
            return False
        # Names and addresses alone: nothing before an @, and no path.
        if address.netloc != host or "@" in host:
            return False
        return name in self._names or _address(name) is not None

    def right_origin(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from this server's page, or from no page at all."""
        origin = headers.get("origin")
        if origin is None:
            site = headers.get("sec-fetch-site", "none")
            return site in ("none", "same-origin")
        address = urllib.parse.urlsplit(origin)
        return address.scheme in ("http", "https") and hmac.compare_digest(
            address.netloc.encode(), headers.get("host", "").encode()
        )

    def right_token(self, token: str) -> bool:
        """Whether this is the token; takes as long whatever is wrong with it."""
        return self._token is not None and _same(token, self._token)

    def known(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool:
        """Whether a request brings the token, or the page's cookie."""
        if self._token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.right_token(token.strip()):
            return True
        return _same(cookies.get(COOKIE, ""), self.cookie)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _same(one: str, other: str) -> bool:
    # (Of digests, so that not even the length shows.)
    digests = [hashlib.sha256(text.encode()).digest() for text in (one, other)]
    return hmac.compare_digest(*digests)

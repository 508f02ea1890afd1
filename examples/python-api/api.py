"""What the API answers: settings come from a ConfigMap, the token that callers need from a Secret.

PRICES is a mounted file: JSON, cents by article. CURRENCY is a variable. TOKEN_FILE is a mounted file.
"""

import hmac
import json
import os


def authorized(authorization: bytes | None) -> bool:
    with open(os.environ.get("TOKEN_FILE", "/etc/api-token/token"), "rb") as file:
        wanted = b"Bearer " + file.read().strip()
    return authorization is not None and hmac.compare_digest(authorization, wanted)


def answer(path: str, authorization: bytes | None) -> tuple[int, bytes]:
    """Status and JSON body for a GET of `path`. Files are read each time: a volume follows its ConfigMap.

    So are variables: what a module reads when it is imported, componentize-py reads when it builds.
    """
    if path == "/ready":
        return 200, b"{}"
    if not authorized(authorization):
        return 401, b'{"error": "a bearer token is needed"}'
    with open(os.environ.get("PRICES", "/etc/api/prices.json")) as file:
        prices = json.load(file)
    article = path.removeprefix("/prices/")
    if article not in prices:
        return 404, json.dumps({"error": f"no price of {article}"}).encode()
    price = {"article": article, "cents": prices[article], "currency": os.environ.get("CURRENCY", "EUR")}
    return 200, json.dumps(price).encode()

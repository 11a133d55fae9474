"""`healthcheck.py URL`: the health check of a container. Exit code 0 when the page answers 200, 1 otherwise.

The slim base image has no curl. Needs nothing but the standard library, so it starts in a fraction of what importing
our own packages takes; Docker runs it every few seconds.
"""

import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 4.0


def check(url: str) -> str | None:
    """None when the page answers 200, else why it does not."""
    # No proxy: HTTP_PROXY in the environment is for the world outside, the page is in this very container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            return None if answer.status == 200 else f"{url} answers {answer.status}"
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(1000).decode(errors="replace")
        return f"{url} answers {error.code}: {body}"
    except OSError as error:
        return f"{url} does not answer: {error}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: healthcheck.py URL")
    sys.exit(check(sys.argv[1]))

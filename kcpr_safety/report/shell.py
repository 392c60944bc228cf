"""What has every page in common: one file, its styles inside, nothing asked of any network?

The content security policy allows what the page itself holds and nothing else: inline styles,
pictures and films as data, and the one script that sorts tables, by its hash.
"""

import base64
import hashlib
from html import escape
from importlib import resources

from kcpr_safety import __version__


def document(
    title: str, body: str, footer: str, *, css_class: str = "", sortable: bool = False
) -> str:
    """The whole document; `body` holds the header and main elements."""
    css = _resource("page.css")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    script = ""
    if sortable:
        code = _resource("sort.js")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy += f"; img-src data:; media-src data:; script-src 'sha256-{digest}'"
        script = f"<script>{code}</script>\n"
    named = f' class="{css_class}"' if css_class else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>
{css}</style>
</head>
<body{named}>
{body}
<footer><p>Made by kcpr-safety {escape(__version__)} {footer}</p></footer>
{script}</body>
</html>
"""


def _resource(name: str) -> str:
    return resources.files("kcpr_safety.report").joinpath(name).read_text("utf-8")

"""Those who are compared: each module runs lifecycles its own way, in a process of its own.

A lifecycle is one thing with a payload of 1 KB that is created, started and completed, each step
durable before the next begins. A module has `lifecycles(url)`, a context manager over an empty
database of its own, which gives a function that runs a number of lifecycles and returns the seconds
they took; some take options. And it has `version()`.
"""

import json
from typing import Final

PAYLOAD: Final = {
    "user": "ada@example.org",
    "items": [{"sku": f"sku-{n}", "quantity": n, "price": n * 1.25} for n in range(16)],
    "note": "x" * 194,
}
assert len(json.dumps(PAYLOAD)) == 1024
RESULT: Final = {"shipped": True}

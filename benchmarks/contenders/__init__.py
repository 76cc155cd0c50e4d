"""The contenders: each module runs lifecycles with one library, in its own process.

A lifecycle is one execution with a payload of 1 KB that is created, started and completed; each
step is durable before the next begins. A module has `version()` and `lifecycles(url)`: a context
manager on an empty database, which yields a function that runs a number of lifecycles and returns
the seconds they took. Some take options.
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

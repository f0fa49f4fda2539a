"""The API of `sammi serve` against its own OpenAPI description, by schemathesis.

The model behind it is the one that fuzzing uses: it checks what a model checks, and is not slow.
"""

import base64

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fuzz.requests import PNG_BASE64, make_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

schema = schemathesis.openapi.from_asgi("/api/openapi.json", make_app())


@schema.hook
def map_case(context, case):
    """A real image in the place of text, which would hardly ever be one."""
    image = case.body.get("image") if isinstance(case.body, dict) else None
    if image and isinstance(image, str):
        form = case.media_type == "multipart/form-data"
        case.body["image"] = base64.b64decode(PNG_BASE64) if form else PNG_BASE64
    return case


def check(case):
    """No error of the server; status, type and fields of each answer are in the description."""
    # A form's fields are text: what is no number or no truth value is known only when it is read.
    typed = case.media_type != "multipart/form-data"
    case.call_and_validate(checks=[*CHECKS, negative_data_rejection] if typed else CHECKS)


options = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@schema.parametrize()
@settings(max_examples=25, **options)
def test_answers_are_as_described(case):
    check(case)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=3000, **options)
def test_many_answers_are_as_described(case):
    check(case)
